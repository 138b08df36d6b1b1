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
//! * The host's items ([`Pool::External`], [`Pool::AutoExternal`]) are kept here,
//!   and sent whenever the guest may lack them: after the versions are agreed on,
//!   after a daemon was gone, and when a look shows that there are fewer than there
//!   should be. An item whose sending failed or came to no known end is tried again.
//! * Reading is enumerating until the guest says that there is no more: Linux
//!   answers a get with an empty text. A listing has a limit in bytes; the next one
//!   goes on where it ended.
//! * An item that the guest cannot turn into UTF-16 is counted and left out: it
//!   may be another program's.

use std::time::Duration;

use crate::device::Ic;
use crate::look::Look;
use crate::protocol::{Answer, BadAnswer, Deadline, Protocol, Request};
use crate::service::Service;
use crate::slot::{Outcome, Requests, Slot, Ticket};
use crate::status::{ServiceError, ServiceState};
use crate::wire::{HResult, IcVersion, Versions};

mod ip;
mod item;
mod kept;
mod walk;
pub mod wire;

pub use ip::{
    Adapter, IP_BODY, IpAddress, IpConfig, IpError, IpInfo, emit_get_ip, emit_set_ip, parse_ip,
};
pub use item::{
    Item, ItemError, Key, MAX_KEY, MAX_KEY_BACK, MAX_VALUE, MAX_VALUE_BACK, Pool, Value, ValueText,
};
use kept::Kept;
pub use kept::{Items, MAX_ITEMS};
pub use walk::{Listing, MAX_LISTED, MAX_LISTED_BYTES};
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
/// let list = KvpRequest::List(Pool::Auto, 0);
/// let refused = kvp.request(now, list, Duration::from_secs(60));
/// assert_eq!(refused, Err(ServiceError::NotOpen));
/// # Ok::<(), ics_devices::kvp::ItemError>(())
/// ```
pub type Kvp = Ic<KvpProtocol>;

/// The guest's own timer for its daemon is 30 s: an answer comes before this.
const ANSWER_LIMIT: Duration = Duration::from_secs(35);

/// What the host's user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvpRequest {
    /// Add an item or change it.
    Set(Pool, Key, Value),
    /// Remove an item.
    Delete(Pool, Key),
    /// A pool's items from this index on.
    List(Pool, u32),
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
    Sync(Pool, Key),
    Look(Pool),
}

/// What data exchange adds to what all services have in common.
#[derive(Debug, Default)]
pub struct KvpProtocol {
    slot: Slot<KvpRequest, KvpAnswer>,
    walk: Option<Walk>,
    /// What the guest is to have of the host's.
    kept: Kept,
    look: Look,
    /// Chosen by `request`, in the ring after `sent`.
    purpose: Option<Purpose>,
}

impl Kvp {
    /// The service with items of the user's that the guest is to have.
    pub fn new(items: impl IntoIterator<Item = (Key, Value)>) -> Self {
        let mut kept = Kept::default();
        kept.fill(Pool::External, items);
        Self::from_protocol(KvpProtocol {
            kept,
            ..KvpProtocol::default()
        })
    }

    /// And with what the host tells of itself and of the VM, as Hyper-V does in
    /// [`Pool::AutoExternal`].
    #[must_use]
    pub fn with_auto_external(mut self, items: impl IntoIterator<Item = (Key, Value)>) -> Self {
        self.protocol.kept.fill(Pool::AutoExternal, items);
        self
    }

    /// Asks the guest; it has to be done within `limit`. Poke the host, then
    /// wait for the outcome.
    pub fn request(
        &mut self,
        now: Duration,
        request: KvpRequest,
        limit: Duration,
    ) -> Result<Ticket, ServiceError> {
        self.admit()?;
        self.protocol.check(&request)?;
        self.protocol.slot.submit(now, limit, request)
    }

    /// How the request ended, once.
    pub fn take_outcome(&mut self) -> Option<Outcome<KvpAnswer>> {
        self.protocol.slot.take()
    }

    /// The user's items, whether the guest has them yet or not.
    pub fn items(&self) -> &Items {
        self.protocol.kept.external()
    }

    /// How many of the host's items the guest may not have yet.
    pub fn unsent_items(&self) -> usize {
        self.protocol.kept.unsent()
    }
}

impl KvpProtocol {
    fn check(&self, request: &KvpRequest) -> Result<(), ServiceError> {
        Err(ServiceError::Unsupported(match request {
            KvpRequest::Set(Pool::Auto, ..) | KvpRequest::Delete(Pool::Auto, _) => {
                "the guest itself makes the items of the pool auto"
            }
            KvpRequest::Set(Pool::AutoExternal, ..) | KvpRequest::Delete(Pool::AutoExternal, _) => {
                "the host itself makes the items of the pool auto-external; those of the user's \
                 go into external"
            }
            KvpRequest::Set(Pool::External, key, _) if !self.kept.has_room(key) => {
                "the host keeps at most 1024 items"
            }
            KvpRequest::List(_, from) if *from > MAX_LISTED => {
                "no more than 4096 items of a pool are listed"
            }
            _ => return Ok(()),
        }))
    }

    /// A request of the user's for the host's pool came to no known end.
    fn doubt(&mut self, now: Duration) {
        if let Some(
            KvpRequest::Set(Pool::External, key, _) | KvpRequest::Delete(Pool::External, key),
        ) = self.slot.in_flight()
        {
            let key = key.clone();
            self.kept.sync_later(now, Pool::External, key);
        }
    }

    /// The user's items are looked after also while nobody watches. What the host
    /// tells of itself is not worth waking an idle guest for.
    fn has_to_look(&self) -> bool {
        !self.kept.external().is_empty()
    }

    fn user_answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        let Some(request) = self.slot.in_flight() else {
            return Err(BadAnswer);
        };
        let (ok, status) = (answer.status.is_ok(), answer.status);
        let refused = Err(ServiceError::Guest(status));
        let result = match request {
            KvpRequest::Set(pool, key, value) if ok => {
                self.kept.set(*pool, key, value);
                Ok(KvpAnswer::Done)
            }
            KvpRequest::Delete(pool, key) if ok || status == HResult::CONT => {
                let kept = self.kept.remove(*pool, key);
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
            KvpRequest::List(..) | KvpRequest::Get(..) => return self.walked(answer),
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
        match walk.answered(answer, self.kept.pool(walk.pool())) {
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

    fn emit(&mut self, body: &mut Vec<u8>) {
        match self.slot.waiting().map(|(request, _)| request) {
            Some(KvpRequest::Set(pool, key, value)) => wire::emit_set(*pool, key, value, body),
            Some(KvpRequest::Delete(pool, key)) => wire::emit_delete(*pool, key, body),
            Some(KvpRequest::List(pool, from)) => {
                let walk = self.walk.get_or_insert_with(|| Walk::list(*pool, *from));
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
        self.kept.sync_all();
        self.look.anyway(self.has_to_look());
        self.look.later(now);
    }

    fn disconnected(&mut self, _: Duration) {
        self.slot.finish(Err(ServiceError::NotOpen));
        (self.walk, self.purpose) = (None, None);
        self.kept.stop();
        self.look.stop();
    }

    fn requests(&self) -> Option<&dyn Requests> {
        Some(&self.slot)
    }

    fn requests_mut(&mut self) -> Option<&mut dyn Requests> {
        Some(&mut self.slot)
    }

    fn ended_unsent(&mut self) {
        self.walk = None;
    }

    fn deadline(&self) -> Option<Duration> {
        let deadlines = [self.kept.deadline(), self.look.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn tick(&mut self, now: Duration) {
        self.kept.tick(now);
        self.look.tick(now);
    }

    fn request(&mut self, now: Duration, _: Versions, body: &mut Vec<u8>) -> Option<Request> {
        let usual = now.saturating_add(ANSWER_LIMIT);
        if let Some((_, deadline)) = self.slot.waiting() {
            self.emit(body);
            self.purpose = Some(Purpose::User);
            return Some(Request {
                deadline: Deadline::User(deadline),
            });
        }
        if let Some((pool, key, value)) = self.kept.next() {
            match value {
                Some(value) => wire::emit_set(pool, key, value, body),
                None => wire::emit_delete(pool, key, body),
            }
            self.purpose = Some(Purpose::Sync(pool, key.clone()));
        } else if self.look.is_due() {
            let (pool, last) = self.kept.look();
            wire::emit_enumerate(pool, last, body);
            self.purpose = Some(Purpose::Look(pool));
        } else {
            return None;
        }
        Some(Request {
            deadline: Deadline::Guest(usual),
        })
    }

    fn sent(&mut self, _: Duration) {
        match &self.purpose {
            Some(Purpose::User) => self.slot.sent(),
            Some(Purpose::Sync(pool, key)) => self.kept.sent(*pool, key),
            Some(Purpose::Look(_)) => self.look.sent(),
            None => {}
        }
        self.look.put_off();
    }

    fn answered(&mut self, now: Duration, answer: &Answer<'_>) -> Result<(), BadAnswer> {
        self.look.later(now);
        let taken = match self.purpose.take() {
            Some(Purpose::User) => self.user_answered(now, answer),
            Some(Purpose::Sync(pool, key)) => {
                self.kept.synced(now, pool, key, answer.status);
                Ok(())
            }
            Some(Purpose::Look(pool)) => {
                self.look.ended();
                self.kept.looked(pool, answer.status);
                Ok(())
            }
            None => Err(BadAnswer),
        };
        self.look.anyway(self.has_to_look());
        taken
    }

    fn late(&mut self, now: Duration, _: &Answer<'_>) {
        // The guest did something of which nobody knew any more, or its daemon
        // was gone: whatever it has now, it is to have the host's items.
        self.kept.sync_all();
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
            Some(Purpose::Sync(pool, key)) => self.kept.sync_later(now, pool, key),
            Some(Purpose::Look(_)) | None => self.look.ended(),
        }
        self.look.later(now);
    }

    fn resumed(&mut self, now: Duration, slept: Duration) {
        self.kept.resumed(now, slept);
        self.look.resumed(now, slept);
    }

    fn look(&mut self) -> Option<&mut Look> {
        Some(&mut self.look)
    }

    fn condition(&self, _: Duration) -> (ServiceState, String) {
        let detail = match (self.kept.len(), self.kept.unsent()) {
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
