// SPDX-License-Identifier: GPL-2.0

__ferrule unsigned int ferrule_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

__ferrule void ferrule_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}
