// SPDX-License-Identifier: GPL-2.0

__ferrule int ferrule_register_pm_notifier(struct notifier_block *block)
{
	return register_pm_notifier(block);
}

__ferrule int ferrule_unregister_pm_notifier(struct notifier_block *block)
{
	return unregister_pm_notifier(block);
}
