// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest is to have of the host's, and what it may lack of it: the user's
//! items ([`Pool::External`]), and what the host tells of itself
//! ([`Pool::AutoExternal`]). Both go the same way.
//!
//! ```text
//!            ┌──────────── a session, a late answer, a look that misses one ─┐
//!            ▼                                                               │
//!   items ─► dirty ─► sent ─┬─ taken ────────────────────────────────────────┤
//!              ▲            └─ refused, or no known end ─► failed            │
//!              └────────────────── RETRY passes ◄────────────┘               │
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::item::{Key, Pool, Value};
use crate::protocol::moved;
use crate::wire::HResult;

/// The host keeps no more items of a pool than this.
pub const MAX_ITEMS: usize = 1024;
/// Before an item that the guest did not take is sent again.
const RETRY: Duration = Duration::from_secs(5);

/// The items of a pool.
pub type Items = BTreeMap<Key, Value>;

/// The host's items in both of its pools, and how far the guest has them.
#[derive(Debug, Default)]
pub(super) struct Kept {
    external: Items,
    auto_external: Items,
    /// Keys about which the guest may know something else.
    dirty: BTreeSet<(Pool, Key)>,
    /// Those that did not go well; they are dirty again later.
    failed: BTreeSet<(Pool, Key)>,
    retry_at: Option<Duration>,
    /// The pool that the last look was for.
    looked_at: Option<Pool>,
}

impl Kept {
    /// Puts items into one of the host's pools before anything is sent.
    pub(super) fn fill(&mut self, pool: Pool, items: impl IntoIterator<Item = (Key, Value)>) {
        if let Some(kept) = self.pool_mut(pool) {
            kept.extend(items);
            while kept.len() > MAX_ITEMS {
                kept.pop_last();
            }
        }
    }

    /// The items of one of the host's pools; nothing for the guest's own.
    pub(super) fn pool(&self, pool: Pool) -> Option<&Items> {
        match pool {
            Pool::External => Some(&self.external),
            Pool::AutoExternal => Some(&self.auto_external),
            Pool::Guest | Pool::Auto => None,
        }
    }

    fn pool_mut(&mut self, pool: Pool) -> Option<&mut Items> {
        match pool {
            Pool::External => Some(&mut self.external),
            Pool::AutoExternal => Some(&mut self.auto_external),
            Pool::Guest | Pool::Auto => None,
        }
    }

    /// The user's items.
    pub(super) fn external(&self) -> &Items {
        &self.external
    }

    /// Items in both pools.
    pub(super) fn len(&self) -> usize {
        self.external.len() + self.auto_external.len()
    }

    /// Items that the guest may lack.
    pub(super) fn unsent(&self) -> usize {
        self.dirty.len() + self.failed.len()
    }

    /// Whether the user may add an item of this name.
    pub(super) fn has_room(&self, key: &Key) -> bool {
        self.external.len() < MAX_ITEMS || self.external.contains_key(key)
    }

    /// The guest has taken an item.
    pub(super) fn set(&mut self, pool: Pool, key: &Key, value: &Value) {
        if let Some(kept) = self.pool_mut(pool) {
            kept.insert(key.clone(), value.clone());
            self.is_known(pool, key);
        }
    }

    /// The guest is without an item. Whether the host had it.
    pub(super) fn remove(&mut self, pool: Pool, key: &Key) -> bool {
        let Some(kept) = self.pool_mut(pool) else {
            return false;
        };
        let had = kept.remove(key).is_some();
        self.is_known(pool, key);
        had
    }

    fn is_known(&mut self, pool: Pool, key: &Key) {
        let name = (pool, key.clone());
        self.dirty.remove(&name);
        self.failed.remove(&name);
    }

    /// The guest may lack any of them.
    pub(super) fn sync_all(&mut self) {
        for (pool, kept) in [
            (Pool::External, &self.external),
            (Pool::AutoExternal, &self.auto_external),
        ] {
            self.dirty
                .extend(kept.keys().map(|key| (pool, key.clone())));
        }
        self.dirty.append(&mut self.failed);
        self.retry_at = None;
    }

    /// An item was refused, or its sending came to no known end.
    pub(super) fn sync_later(&mut self, now: Duration, pool: Pool, key: Key) {
        self.dirty.remove(&(pool, key.clone()));
        self.failed.insert((pool, key));
        self.retry_at.get_or_insert(now.saturating_add(RETRY));
    }

    /// What to send next: an item, or the name of one that is to go.
    pub(super) fn next(&self) -> Option<(Pool, &Key, Option<&Value>)> {
        let (pool, key) = self.dirty.first()?;
        Some((*pool, key, self.pool(*pool)?.get(key)))
    }

    /// It is in the ring.
    pub(super) fn sent(&mut self, pool: Pool, key: &Key) {
        self.dirty.remove(&(pool, key.clone()));
    }

    /// It is answered.
    pub(super) fn synced(&mut self, now: Duration, pool: Pool, key: Key, status: HResult) {
        let kept = self.pool(pool).is_some_and(|kept| kept.contains_key(&key));
        if !status.is_ok() && (kept || status != HResult::CONT) {
            self.sync_later(now, pool, key);
        }
    }

    /// What a look asks for: the last item of a pool, of the other pool at the next
    /// look. If it is not there, at least one is missing.
    pub(super) fn look(&self) -> (Pool, u32) {
        let other = match self.looked_at {
            Some(Pool::External) => Pool::AutoExternal,
            _ => Pool::External,
        };
        let is_empty = |pool| self.pool(pool).is_none_or(BTreeMap::is_empty);
        let pool = match other {
            Pool::External if is_empty(Pool::External) && !is_empty(Pool::AutoExternal) => {
                Pool::AutoExternal
            }
            Pool::AutoExternal if is_empty(Pool::AutoExternal) => Pool::External,
            pool => pool,
        };
        let last = self
            .pool(pool)
            .map_or(0, |kept| kept.len().saturating_sub(1));
        (pool, u32::try_from(last).unwrap_or(0))
    }

    /// A look was answered.
    pub(super) fn looked(&mut self, pool: Pool, status: HResult) {
        self.looked_at = Some(pool);
        let any = self.pool(pool).is_some_and(|kept| !kept.is_empty());
        if status == HResult::CONT && any {
            self.sync_all();
        }
    }

    /// When [`tick`](Self::tick) is to be called.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.retry_at
    }

    pub(super) fn tick(&mut self, now: Duration) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.dirty.append(&mut self.failed);
        }
    }

    /// There is nobody to send anything to.
    pub(super) fn stop(&mut self) {
        self.retry_at = None;
    }

    pub(super) fn resumed(&mut self, now: Duration, slept: Duration) {
        if let Some(at) = &mut self.retry_at {
            *at = moved(*at, now.saturating_add(RETRY), slept);
        }
    }
}
