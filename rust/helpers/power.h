/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRULE_HELPERS_POWER_H
#define FERRULE_HELPERS_POWER_H

#include <linux/suspend.h>

int ferrule_register_pm_notifier(struct notifier_block *block);
int ferrule_unregister_pm_notifier(struct notifier_block *block);

#endif
