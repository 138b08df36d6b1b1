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
//!
//! A listing ends before its limit in bytes. The item that did not fit is asked for
//! once more by the next one.

use super::item::{Item, Key, MAX_KEY, MAX_KEY_BACK, MAX_VALUE, MAX_VALUE_BACK, Pool, Value};
use super::kept::Items;
use super::{KvpAnswer, wire};
use crate::protocol::Answer;
use crate::status::ServiceError;
use crate::wire::HResult;

/// A guest that has more items than this, or no end to them, is not read on.
pub const MAX_LISTED: u32 = 4096;
/// Bytes of a listing, as they are when it is written out. A guest has some ten
/// items of a line each; a pool that is larger is read in parts.
pub const MAX_LISTED_BYTES: usize = 128 << 10;
/// Bytes of an item that are neither key nor value: their names, quotes and commas.
const ITEM_BYTES: usize = 32;
/// Bytes of a UTF-16 unit that is written as an escape: JSON's are `\u0001`.
const ESCAPE_BYTES: usize = 6;
/// A guest that cannot read as many of its items has another trouble.
const MAX_UNREADABLE: u32 = 16;

// A listing makes progress: the longest item fits.
const _: () = assert!(ITEM_BYTES + ESCAPE_BYTES * (MAX_KEY + MAX_VALUE + 2) <= MAX_LISTED_BYTES);

/// Items of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Those that could be read, in the guest's order.
    pub items: Vec<Item>,
    /// How many the guest could not turn into UTF-16.
    pub unreadable: u32,
    /// There are more; reading ended at a limit.
    pub cut: bool,
    /// With this one the next listing begins. Nothing at the end, or at [`MAX_LISTED`].
    pub next: Option<u32>,
}

/// On the way through a pool.
#[derive(Debug)]
pub(super) struct Walk {
    pool: Pool,
    find: Option<Key>,
    index: u32,
    /// The present index has failed once.
    failed: bool,
    /// Of the listing, written out.
    bytes: usize,
    listing: Listing,
}

/// What comes after an answer.
pub(super) enum Next {
    Again,
    Done(KvpAnswer),
    Failed(ServiceError),
}

impl Walk {
    pub(super) fn list(pool: Pool, from: u32) -> Self {
        Self {
            pool,
            find: None,
            index: from,
            failed: false,
            bytes: 0,
            listing: Listing::default(),
        }
    }

    pub(super) fn find(pool: Pool, key: &Key) -> Self {
        Self {
            find: Some(key.clone()),
            ..Self::list(pool, 0)
        }
    }

    pub(super) fn pool(&self) -> Pool {
        self.pool
    }

    pub(super) fn emit(&self, body: &mut Vec<u8>) {
        wire::emit_enumerate(self.pool, self.index, body);
    }

    /// `known` are the host's items, if the pool is one of the host's.
    pub(super) fn answered(&mut self, answer: &Answer<'_>, known: Option<&Items>) -> Next {
        match answer.status {
            HResult::CONT => return self.done(),
            // There is another one.
            _ if self.find.is_none() && self.index >= MAX_LISTED => return self.cut(None),
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
                    None => {
                        self.bytes += written_bytes(&item);
                        if self.bytes > MAX_LISTED_BYTES {
                            return self.cut(Some(self.index));
                        }
                        self.listing.items.push(item);
                    }
                    Some(key) if key.as_str() == item.key => {
                        return Next::Done(KvpAnswer::Item(Some(item)));
                    }
                    Some(_) => {}
                }
            }
        }
        self.failed = false;
        // One that is looked for by its name is looked for until there is no more, or
        // no more time.
        self.index = self.index.saturating_add(1);
        Next::Again
    }

    fn cut(&mut self, next: Option<u32>) -> Next {
        (self.listing.cut, self.listing.next) = (true, next);
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
    fn complete(&self, item: Item, known: Option<&Items>) -> Item {
        let cut = |text: &str, most: usize| text.encode_utf16().count() >= most - 1;
        let Item { mut key, mut value } = item;
        if cut(&key, MAX_KEY_BACK) {
            let known = known.into_iter().flat_map(Items::keys);
            let mut candidates = self.find.iter().chain(known);
            if let Some(whole) = candidates.find(|known| one_more(known.as_str(), &key)) {
                key = whole.as_str().into();
            }
        }
        if let Some(known) = known
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

/// What an item adds to a listing, at most.
fn written_bytes(item: &Item) -> usize {
    let text = |text: &str| -> usize {
        text.chars()
            .map(|c| match c {
                '"' | '\\' => 2,
                // Beyond ASCII anything may be escaped: some of it deceives a reader.
                c if c.is_control() || !c.is_ascii() => ESCAPE_BYTES * c.len_utf16(),
                _ => 1,
            })
            .sum()
    };
    ITEM_BYTES + text(&item.key) + text(&item.value)
}

/// Whether `whole` is `cut` and one character more.
fn one_more(whole: &str, cut: &str) -> bool {
    whole
        .strip_prefix(cut)
        .is_some_and(|rest| rest.chars().count() == 1)
}
