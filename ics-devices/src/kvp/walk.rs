// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a pool item by item, from index 0 until the guest says that there is
//! no more.
//!
//! ```text
//!   ask for index ─┬─ an item ────────► index + 1
//!                  ├─ failed ─ again ─┬─ an item
//!                  │                  └─ failed: unreadable, index + 1
//!                  └─ no more ────────► done
//! ```

use std::collections::BTreeMap;

use super::item::{Item, Key, MAX_KEY_BACK, MAX_VALUE_BACK, Pool, Value};
use super::{KvpAnswer, wire};
use crate::protocol::Answer;
use crate::status::ServiceError;
use crate::wire::HResult;

/// A guest that has more items than this, or no end to them, is not read on.
pub(super) const MAX_LISTED: usize = 4096;
/// A guest that cannot read as many of its items has another trouble.
const MAX_UNREADABLE: u32 = 16;

/// Items of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Those that could be read, in the guest's order.
    pub items: Vec<Item>,
    /// How many the guest could not turn into UTF-16.
    pub unreadable: u32,
    /// There are more; reading ended at a limit.
    pub cut: bool,
}

/// On the way through a pool.
#[derive(Debug)]
pub(super) struct Walk {
    pool: Pool,
    find: Option<Key>,
    index: u32,
    /// The present index has failed once.
    failed: bool,
    listing: Listing,
}

/// What comes after an answer.
pub(super) enum Next {
    Again,
    Done(KvpAnswer),
    Failed(ServiceError),
}

impl Walk {
    pub(super) fn list(pool: Pool) -> Self {
        Self {
            pool,
            find: None,
            index: 0,
            failed: false,
            listing: Listing::default(),
        }
    }

    pub(super) fn find(pool: Pool, key: &Key) -> Self {
        Self {
            find: Some(key.clone()),
            ..Self::list(pool)
        }
    }

    pub(super) fn emit(&self, body: &mut Vec<u8>) {
        wire::emit_enumerate(self.pool, self.index, body);
    }

    pub(super) fn answered(&mut self, answer: &Answer<'_>, known: &BTreeMap<Key, Value>) -> Next {
        match answer.status {
            HResult::CONT => return self.done(),
            // Its daemon may have died of something else: the next one is asked
            // again, and waited for.
            HResult::FAIL if !self.failed => {
                self.failed = true;
                return Next::Again;
            }
            HResult::FAIL if self.listing.unreadable < MAX_UNREADABLE => {
                self.listing.unreadable += 1;
            }
            status if !status.is_ok() => return Next::Failed(ServiceError::Guest(status)),
            _ => {
                let Ok(item) = wire::parse_item(answer.body) else {
                    return Next::Failed(ServiceError::BadAnswer);
                };
                let item = self.complete(item, known);
                match &self.find {
                    None => self.listing.items.push(item),
                    Some(key) if key.as_str() == item.key => {
                        return Next::Done(KvpAnswer::Item(Some(item)));
                    }
                    Some(_) => {}
                }
            }
        }
        self.failed = false;
        self.index += 1;
        if usize::try_from(self.index).is_ok_and(|index| index < MAX_LISTED) {
            return Next::Again;
        }
        self.listing.cut = true;
        self.done()
    }

    fn done(&mut self) -> Next {
        Next::Done(match self.find {
            Some(_) => KvpAnswer::Item(None),
            None => KvpAnswer::Items(std::mem::take(&mut self.listing)),
        })
    }

    /// Linux sends back one unit less than a key or value can have. What is
    /// known of the item completes it.
    fn complete(&self, item: Item, known: &BTreeMap<Key, Value>) -> Item {
        let cut = |text: &str, most: usize| text.encode_utf16().count() >= most - 1;
        let Item { mut key, mut value } = item;
        if cut(&key, MAX_KEY_BACK) {
            let mut candidates = self.find.iter().chain(match self.pool {
                Pool::External => Some(known.keys()).into_iter().flatten(),
                _ => None.into_iter().flatten(),
            });
            if let Some(whole) = candidates.find(|known| one_more(known.as_str(), &key)) {
                key = whole.as_str().into();
            }
        }
        if self.pool == Pool::External
            && cut(&value, MAX_VALUE_BACK)
            && let Ok(key) = Key::new(&key)
            && let Some(Value::Text(whole)) = known.get(&key)
            && one_more(whole.as_str(), &value)
        {
            value = whole.as_str().into();
        }
        Item { key, value }
    }
}

/// Whether `whole` is `cut` and one character more.
fn one_more(whole: &str, cut: &str) -> bool {
    whole
        .strip_prefix(cut)
        .is_some_and(|rest| rest.chars().count() == 1)
}
