/* SPDX-License-Identifier: GPL-2.0 */

/* In place of dm_register_path_selector() and dm_unregister_path_selector(). */
int selector_load_register(struct path_selector_type *type);
void selector_load_unregister(struct path_selector_type *type);
