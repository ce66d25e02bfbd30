/* SPDX-License-Identifier: GPL-2.0 */

/* For compat.rs, which says until when. */
unsigned long ferrule_spin_lock_irqsave(spinlock_t *lock);
bool ferrule_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void ferrule_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);
