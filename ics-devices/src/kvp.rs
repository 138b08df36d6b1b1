// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data exchange: items by name in either direction, and network addresses
//! (protocol 6.6).
//!
//! ```text
//!   the user's requests ────────┐ first
//!   items the guest may lack ───┼─► one packet at a time ─► answer
//!   a look, now and then ───────┘ last
//! ```
//!
//! * The host's own items ([`Pool::External`]) are kept here, and sent whenever
//!   the guest may lack them: after the versions are agreed on, after a daemon
//!   was gone, and when a look shows that there are fewer than there should be.
//!   An item whose sending failed or came to no known end is tried again.
//! * Reading is enumerating until the guest says that there is no more: Linux
//!   answers a get with an empty text.
//! * An item that the guest cannot turn into UTF-16 is counted and left out: it
//!   may be another program's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::device::Ic;
use crate::look::Look;
use crate::protocol::{Answer, BadAnswer, Protocol, Request, moved};
use crate::service::Service;
use crate::slot::{Outcome, Slot, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{HResult, IcVersion, Versions};

mod ip;
mod item;
mod walk;
pub mod wire;

pub use ip::{
    Adapter, IP_BODY, IpAddress, IpConfig, IpError, IpInfo, emit_get_ip, emit_set_ip, parse_ip,
};
pub use item::{
    Item, ItemError, Key, MAX_KEY, MAX_KEY_BACK, MAX_VALUE, MAX_VALUE_BACK, Pool, Value, ValueText,
};
pub use walk::Listing;
use walk::{Next, Walk};

/// The data exchange service.
///
/// ```
/// use std::time::Duration;
/// use ics_devices::{Kvp, KvpRequest, ServiceError};
/// use ics_devices::kvp::{Key, Pool, Value};
///
/// let items = [(Key::new("Site")?, Value::text("Berlin")?)];
/// let mut kvp = Kvp::new(items);
/// let now = Duration::ZERO;
/// // Nobody has opened the channel. The item is sent as soon as somebody has.
/// let list = KvpRequest::List(Pool::Auto);
/// let refused = kvp.request(now, list, Duration::from_secs(60));
/// assert_eq!(refused, Err(ServiceError::NotOpen));
/// # Ok::<(), ics_devices::kvp::ItemError>(())
/// ```
pub type Kvp = Ic<KvpProtocol>;

/// The host keeps no more items than this.
pub const MAX_ITEMS: usize = 1024;
/// The guest's own timer for its daemon is 30 s: an answer comes before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);
/// Before an item that the guest did not take is sent again.
const RETRY: Duration = Duration::from_secs(5);

/// What the host's user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvpRequest {
    /// Add an item or change it.
    Set(Pool, Key, Value),
    /// Remove an item.
    Delete(Pool, Key),
    /// All items of a pool.
    List(Pool),
    /// One item of a pool.
    Get(Pool, Key),
    /// An adapter's addresses.
    GetIp(Adapter),
    /// Change an adapter's addresses.
    SetIp(Adapter, IpConfig),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvpAnswer {
    /// It is done.
    Done,
    /// The items.
    Items(Listing),
    /// The item, if there is one.
    Item(Option<Item>),
    /// The addresses.
    Ip(IpInfo),
}

/// What the packet in the ring is for.
#[derive(Clone, Debug)]
enum Purpose {
    User,
    Sync(Key),
    Look,
}

/// What data exchange adds to what all services have in common.
#[derive(Debug, Default)]
pub struct KvpProtocol {
    slot: Slot<KvpRequest, KvpAnswer>,
    walk: Option<Walk>,
    /// What the guest is to have in the host's pool.
    items: BTreeMap<Key, Value>,
    /// Keys about which the guest may know something else.
    dirty: BTreeSet<Key>,
    /// Those that did not go well; they are dirty again later.
    failed: BTreeSet<Key>,
    retry_at: Option<Duration>,
    look: Look,
    /// Chosen by `request`, in the ring after `sent`.
    purpose: Option<Purpose>,
}

impl Kvp {
    /// The service with items of the host's that the guest is to have.
    pub fn new(items: impl IntoIterator<Item = (Key, Value)>) -> Self {
        Self::from_protocol(KvpProtocol {
            items: items.into_iter().take(MAX_ITEMS).collect(),
            ..KvpProtocol::default()
        })
    }

    /// Asks the guest; it has to be done within `limit`. Poke the host, then
    /// wait for the outcome.
    pub fn request(
        &mut self,
        now: Duration,
        request: KvpRequest,
        limit: Duration,
    ) -> Result<Ticket, ServiceError> {
        self.versions()?;
        self.protocol.check(&request)?;
        self.protocol.slot.submit(now, limit, request)
    }

    /// How the request ended, once.
    pub fn take_outcome(&mut self) -> Option<Outcome<KvpAnswer>> {
        self.protocol.slot.take()
    }

    /// The host's items, whether the guest has them yet or not.
    pub fn items(&self) -> &BTreeMap<Key, Value> {
        &self.protocol.items
    }

    /// How many of the host's items the guest may not have yet.
    pub fn unsent_items(&self) -> usize {
        self.protocol.dirty.len() + self.protocol.failed.len()
    }
}

impl KvpProtocol {
    fn check(&self, request: &KvpRequest) -> Result<(), ServiceError> {
        match request {
            KvpRequest::Set(Pool::Auto, ..) | KvpRequest::Delete(Pool::Auto, _) => Err(
                ServiceError::Unsupported("the guest itself makes the items of the pool auto"),
            ),
            KvpRequest::Set(Pool::External, key, _)
                if self.items.len() >= MAX_ITEMS && !self.items.contains_key(key) =>
            {
                Err(ServiceError::Unsupported(
                    "the host keeps at most 1024 items",
                ))
            }
            _ => Ok(()),
        }
    }

    /// The guest may lack any of the host's items.
    fn sync_all(&mut self) {
        self.dirty.extend(self.items.keys().cloned());
        self.dirty.append(&mut self.failed);
        self.retry_at = None;
    }

    fn sync_later(&mut self, now: Duration, key: Key) {
        self.failed.insert(key);
        self.retry_at.get_or_insert(now.saturating_add(RETRY));
    }

    /// A request of the user's for the host's pool came to no known end.
    fn doubt(&mut self, now: Duration) {
        if let Some(
            KvpRequest::Set(Pool::External, key, _) | KvpRequest::Delete(Pool::External, key),
        ) = self.slot.in_flight()
        {
            let key = key.clone();
            self.sync_later(now, key);
        }
    }

    fn user_answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        let Some(request) = self.slot.in_flight() else {
            return Err(BadAnswer);
        };
        let (ok, status) = (answer.status.is_ok(), answer.status);
        let refused = Err(ServiceError::Guest(status));
        let result = match request {
            KvpRequest::Set(pool, key, value) if ok => {
                if *pool == Pool::External {
                    self.dirty.remove(key);
                    self.failed.remove(key);
                    self.items.insert(key.clone(), value.clone());
                }
                Ok(KvpAnswer::Done)
            }
            KvpRequest::Delete(pool, key) if ok || status == HResult::CONT => {
                let kept = *pool == Pool::External && self.items.remove(key).is_some();
                if *pool == Pool::External {
                    self.dirty.remove(key);
                    self.failed.remove(key);
                }
                // What the guest did not have yet was deleted all the same.
                if ok || kept {
                    Ok(KvpAnswer::Done)
                } else {
                    refused
                }
            }
            KvpRequest::Set(..) | KvpRequest::Delete(..) => {
                self.doubt(now);
                refused
            }
            KvpRequest::List(_) | KvpRequest::Get(..) => return self.walked(answer),
            KvpRequest::GetIp(_) if ok => {
                let Ok(info) = parse_ip(answer.body) else {
                    self.slot.finish(Err(ServiceError::BadAnswer));
                    return Err(BadAnswer);
                };
                Ok(KvpAnswer::Ip(info))
            }
            KvpRequest::SetIp(..) if ok => Ok(KvpAnswer::Done),
            KvpRequest::GetIp(_) | KvpRequest::SetIp(..) => refused,
        };
        self.slot.finish(result);
        Ok(())
    }

    fn walked(&mut self, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        let Some(walk) = &mut self.walk else {
            return Err(BadAnswer);
        };
        match walk.answered(answer, &self.items) {
            Next::Again => self.slot.again(),
            Next::Done(answer) => {
                self.walk = None;
                self.slot.finish(Ok(answer));
            }
            Next::Failed(error) => {
                self.walk = None;
                self.slot.finish(Err(error));
                if error == ServiceError::BadAnswer {
                    return Err(BadAnswer);
                }
            }
        }
        Ok(())
    }

    fn synced(&mut self, now: Duration, key: Key, status: HResult) {
        let deleted = !self.items.contains_key(&key) && status == HResult::CONT;
        if !status.is_ok() && !deleted {
            self.sync_later(now, key);
        }
    }

    /// The last of the host's items is looked for: if it is not there, at least
    /// one is missing.
    fn looked(&mut self, status: HResult) {
        if status == HResult::CONT && !self.items.is_empty() {
            self.sync_all();
        }
    }

    fn last_index(&self) -> u32 {
        u32::try_from(self.items.len().saturating_sub(1)).unwrap_or(0)
    }

    fn emit(&mut self, body: &mut Vec<u8>) {
        match self.slot.waiting().map(|(request, _)| request) {
            Some(KvpRequest::Set(pool, key, value)) => wire::emit_set(*pool, key, value, body),
            Some(KvpRequest::Delete(pool, key)) => wire::emit_delete(*pool, key, body),
            Some(KvpRequest::List(pool)) => {
                let walk = self.walk.get_or_insert_with(|| Walk::list(*pool));
                walk.emit(body);
            }
            Some(KvpRequest::Get(pool, key)) => {
                let walk = self.walk.get_or_insert_with(|| Walk::find(*pool, key));
                walk.emit(body);
            }
            Some(KvpRequest::GetIp(adapter)) => emit_get_ip(adapter, body),
            Some(KvpRequest::SetIp(adapter, config)) => emit_set_ip(adapter, config, body),
            None => {}
        }
    }
}

impl Protocol for KvpProtocol {
    const SERVICE: Service = Service::Kvp;
    const VERSIONS: &'static [IcVersion] = &[IcVersion::new(3, 0), IcVersion::new(4, 0)];
    const WAITS_FOR_DAEMON: bool = true;

    fn connected(&mut self, now: Duration, _: Versions) {
        self.purpose = None;
        self.sync_all();
        self.look.anyway(!self.items.is_empty());
        self.look.later(now);
    }

    fn disconnected(&mut self, _: Duration) {
        self.slot.finish(Err(ServiceError::NotOpen));
        (self.walk, self.purpose) = (None, None);
        self.retry_at = None;
        self.look.stop();
    }

    fn deadline(&self) -> Option<Duration> {
        let deadlines = [self.slot.deadline(), self.retry_at, self.look.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn tick(&mut self, now: Duration) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if self.slot.deadline().is_some_and(|at| at <= now) {
            self.walk = None;
        }
        self.slot.expire(now);
        if due(self.retry_at) {
            self.retry_at = None;
            self.dirty.append(&mut self.failed);
        }
        self.look.tick(now);
    }

    fn request(&mut self, now: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        let usual = now.saturating_add(ANSWER_LIMIT);
        if let Some((_, deadline)) = self.slot.waiting() {
            self.emit(body);
            self.purpose = Some(Purpose::User);
            return Some(Request {
                deadline: Some(deadline),
            });
        }
        if let Some(key) = self.dirty.first() {
            match self.items.get(key) {
                Some(value) => wire::emit_set(Pool::External, key, value, body),
                None => wire::emit_delete(Pool::External, key, body),
            }
            self.purpose = Some(Purpose::Sync(key.clone()));
        } else if self.look.is_due() {
            wire::emit_enumerate(Pool::External, self.last_index(), body);
            self.purpose = Some(Purpose::Look);
        } else {
            return None;
        }
        Some(Request {
            deadline: Some(usual),
        })
    }

    fn sent(&mut self, _: Duration) {
        match &self.purpose {
            Some(Purpose::User) => self.slot.sent(),
            Some(Purpose::Sync(key)) => drop(self.dirty.remove(key)),
            Some(Purpose::Look) => self.look.sent(),
            None => {}
        }
        self.look.put_off();
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        self.look.later(now);
        let taken = match self.purpose.take() {
            Some(Purpose::User) => self.user_answered(now, answer),
            Some(Purpose::Sync(key)) => {
                self.synced(now, key, answer.status);
                Ok(())
            }
            Some(Purpose::Look) => {
                self.look.ended();
                self.looked(answer.status);
                Ok(())
            }
            None => Err(BadAnswer),
        };
        self.look.anyway(!self.items.is_empty());
        taken
    }

    fn late(&mut self, now: Duration, _: &Answer<'_>) {
        // The guest did something of which nobody knew any more, or its daemon
        // was gone: whatever it has now, it is to have the host's items.
        self.sync_all();
        self.look.later(now);
    }

    fn failed(&mut self, now: Duration, error: ServiceError) {
        match self.purpose.take() {
            Some(Purpose::User) => {
                self.slot.sent();
                self.doubt(now);
                self.walk = None;
                self.slot.finish(Err(error));
            }
            Some(Purpose::Sync(key)) => {
                self.dirty.remove(&key);
                self.sync_later(now, key);
            }
            Some(Purpose::Look) | None => self.look.ended(),
        }
        self.look.later(now);
    }

    fn resumed(&mut self, now: Duration, slept: Duration) {
        self.slot.postpone(now, slept);
        if let Some(at) = &mut self.retry_at {
            *at = moved(*at, now.saturating_add(RETRY), slept);
        }
        self.look.resumed(now, slept);
    }

    fn look(&mut self) -> Option<&mut Look> {
        Some(&mut self.look)
    }

    fn condition(&self, _: Duration) -> (ServiceState, String) {
        let unsent = self.dirty.len() + self.failed.len();
        let detail = match (self.items.len(), unsent) {
            (0, 0) => "no items of the host's".into(),
            (items, 0) => format!("{items} items of the host's, all in the guest"),
            (items, unsent) => {
                format!("{items} items of the host's, {unsent} on their way to the guest")
            }
        };
        (ServiceState::Ready, detail)
    }
}

#[cfg(test)]
mod tests;
