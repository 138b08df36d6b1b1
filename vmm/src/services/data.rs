// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data exchange, backup and file copy: what clients want of them, and what
//! comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ics_devices::fcopy::{FcopyError, FcopyFailure, FcopyProtocol};
use ics_devices::kvp::{IpInfo, Key, KvpProtocol, Listing, Pool, Value};
use ics_devices::vss::VssProtocol;
use ics_devices::{
    Fcopy, Filesystems, Kvp, KvpAnswer, KvpRequest, NewFile, Outcome, Service, ServiceError,
    Ticket, Vss, VssAnswer, VssRequest,
};
use parking_lot::Mutex;
use serde_json::json;
use vmm_sys_util::eventfd::EventFd;

use super::pending::Pending;
use super::{Bus, Services, api_error, cancel};
use crate::api::Reply;
use crate::api::data::{FileCopy, IpEntry, ItemEntry, ItemList};
use crate::api::pipe::Pipe;
use crate::api::types::{Answer, ApiError, answer};
use crate::api::waiter::Waiter;
use crate::events::Event;

/// The guest's own timer for its daemon is 30 s.
const KVP_LIMIT: Duration = Duration::from_secs(35);
/// A pool is many requests.
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// The host's items, as they are to be after a reset.
#[derive(Clone, Debug, Default)]
pub struct Items {
    /// The user's.
    external: Arc<Mutex<BTreeMap<Key, Value>>>,
    /// What the host tells of itself and of the VM.
    auto_external: Arc<[(Key, Value)]>,
}

impl Items {
    /// Of the user's, and of the host's own.
    pub fn new(external: &[(Key, Value)], auto_external: Vec<(Key, Value)>) -> Self {
        Self {
            external: Arc::new(Mutex::new(external.iter().cloned().collect())),
            auto_external: auto_external.into(),
        }
    }
}

/// What waits for outcomes.
#[derive(Debug)]
pub struct Data {
    items: Items,
    /// Wakes the bus thread when a client has sent more of a file.
    bell: Arc<EventFd>,
    kvp: Pending<KvpRequest>,
    vss: Pending<VssRequest>,
    /// Who is told now that the file systems are frozen: if nobody is there to hear
    /// it, they are thawed.
    freezer: Option<Waiter>,
    file: Option<File>,
    told: Filesystems,
}

/// A file on its way.
#[derive(Debug)]
struct File {
    ticket: Ticket,
    path: String,
    pipe: Pipe,
    reply: Reply,
    /// Its client has hung up, and the guest is told.
    cancelled: bool,
}

impl Data {
    /// With the host's items, on a thread that this bell wakes.
    pub fn new(items: Items, bell: Arc<EventFd>) -> Self {
        Self {
            items,
            kvp: Pending::new(&bell),
            vss: Pending::new(&bell),
            bell,
            freezer: None,
            file: None,
            told: Filesystems::Thawed,
        }
    }

    /// The service with the host's items.
    pub fn kvp(&self) -> Kvp {
        let Items {
            external,
            auto_external,
        } = &self.items;
        Kvp::new(external.lock().clone()).with_auto_external(auto_external.iter().cloned())
    }

    /// Wakes the bus thread.
    pub(super) fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }

    /// The service is taken back; who waits for it is told.
    pub(super) fn disabled(&mut self, service: Service, error: &ApiError) {
        match service {
            Service::Kvp => self.kvp.refuse_all(error),
            Service::Vss => self.vss.refuse_all(error),
            Service::Fcopy => {
                if let Some(file) = self.file.take() {
                    file.reply.send(Err(error.clone()));
                }
            }
            _ => {}
        }
    }
}

impl Services {
    pub(super) fn kvp(&mut self, host: &mut Bus, now: Duration, request: KvpRequest, reply: Reply) {
        let limit = match request {
            KvpRequest::List(..) | KvpRequest::Get(..) => LIST_LIMIT,
            _ => KVP_LIMIT,
        };
        let result = self.device::<Kvp>(host, Service::Kvp).and_then(|relid| {
            let device = host.device_mut::<Kvp>(relid);
            let device = device.ok_or(ServiceError::NotOffered)?;
            Ok((relid, device.request(now, request.clone(), limit)?))
        });
        match result {
            Ok((relid, ticket)) => {
                self.data.kvp.insert(ticket, request, reply);
                host.poke(now, relid);
            }
            Err(error) => reply.send(Err(api_error(Service::Kvp, error))),
        }
    }

    pub(super) fn vss(&mut self, host: &mut Bus, now: Duration, request: VssRequest, reply: Reply) {
        let result = self.device::<Vss>(host, Service::Vss).and_then(|relid| {
            let device = host.device_mut::<Vss>(relid);
            let device = device.ok_or(ServiceError::NotOffered)?;
            Ok((relid, device.request(now, request)?))
        });
        match result {
            Ok((relid, ticket)) => {
                self.data.vss.insert(ticket, request, reply);
                host.poke(now, relid);
            }
            Err(error) => reply.send(Err(vss_error(request, error))),
        }
    }

    pub(super) fn vss_state(&self, host: &Bus, now: Duration) -> Answer {
        let relid = self
            .device::<Vss>(host, Service::Vss)
            .map_err(|error| api_error(Service::Vss, error))?;
        let device = host.device::<Vss>(relid).ok_or_else(ApiError::gone)?;
        let left = match device.filesystems() {
            Filesystems::Frozen { until, .. } => Some(super::millis(until.saturating_sub(now))),
            _ => None,
        };
        Ok(json!({
            "filesystems": filesystems(device.filesystems()),
            "thawed_in_ms": left,
            "paused": device.is_paused(),
            "expired": device.expired(),
        }))
    }

    pub(super) fn copy(&mut self, host: &mut Bus, now: Duration, file: FileCopy, reply: Reply) {
        let FileCopy {
            target,
            overwrite,
            mkdir,
            pipe,
        } = file;
        let path = target.to_string();
        let new = NewFile {
            size: pipe.size(),
            overwrite,
            mkdir,
            target,
        };
        let result = self
            .device::<Fcopy>(host, Service::Fcopy)
            .map_err(FcopyError::from)
            .and_then(|relid| {
                let device = host.device_mut::<Fcopy>(relid);
                let device = device.ok_or(ServiceError::NotOffered)?;
                Ok((relid, device.start(now, new)?))
            });
        match result {
            Ok((relid, ticket)) => {
                pipe.set_bell(Arc::clone(&self.data.bell));
                reply.waiter().ring(Arc::clone(&self.data.bell));
                self.data.file = Some(File {
                    ticket,
                    path,
                    pipe,
                    reply,
                    cancelled: false,
                });
                host.poke(now, relid);
            }
            Err(error) => {
                let partial = false;
                reply.send(Err(copy_error(&path, FcopyFailure { error, partial })));
            }
        }
    }

    /// Cancels what was asked for by clients that have hung up.
    pub(super) fn end_abandoned_data(&mut self, host: &mut Bus, now: Duration) {
        cancel::<KvpProtocol>(host, now, &self.data.kvp.take_abandoned());
        cancel::<VssProtocol>(host, now, &self.data.vss.take_abandoned());
        if let Some(file) = &mut self.data.file
            && file.reply.waiter().is_gone()
            && !std::mem::replace(&mut file.cancelled, true)
        {
            // It stays until the guest has removed what it has of it.
            cancel::<FcopyProtocol>(host, now, &[file.ticket]);
        }
        let freezer = self.data.freezer.take_if(|one| one.is_gone());
        if freezer.is_some()
            && let Some(relid) = host.find::<Vss>()
            && let Some(device) = host.device_mut::<Vss>(relid)
        {
            device.thaw_soon(now);
            host.poke(now, relid);
        }
        self.data.freezer.take_if(|one| one.is_answered());
    }

    /// Gives outcomes to those who wait for them.
    pub(super) fn settle_data(&mut self, host: &mut Bus, now: Duration) {
        self.settle_kvp(host);
        self.settle_vss(host);
        self.pump_file(host, now);
    }

    fn settle_kvp(&mut self, host: &mut Bus) {
        let Some(relid) = host.find::<Kvp>() else {
            return;
        };
        let Some(device) = host.device_mut::<Kvp>(relid) else {
            return;
        };
        let mut told = Vec::new();
        while let Some(Outcome { ticket, result }) = device.take_outcome() {
            let waiting = self.data.kvp.remove(ticket);
            // What the guest has done stays, also for who has hung up meanwhile.
            let changes = waiting.as_ref().is_none_or(|(request, _)| {
                matches!(
                    request,
                    KvpRequest::Set(Pool::External, ..) | KvpRequest::Delete(Pool::External, _)
                )
            });
            if changes && result.is_ok() {
                self.data.items.external.lock().clone_from(device.items());
            }
            let Some((request, reply)) = waiting else {
                continue;
            };
            let answer = match result {
                Ok(done) => kvp_answer(&request, done),
                Err(error) => Err(kvp_error(&request, error)),
            };
            told.push((reply, answer));
        }
        for (reply, answer) in told {
            reply.send(self.told(answer));
        }
    }

    fn settle_vss(&mut self, host: &mut Bus) {
        let Some(relid) = host.find::<Vss>() else {
            return;
        };
        let Some(device) = host.device_mut::<Vss>(relid) else {
            return;
        };
        let mut outcomes = Vec::new();
        while let Some(outcome) = device.take_outcome() {
            outcomes.push(outcome);
        }
        let state = device.filesystems();
        if filesystems(state) != filesystems(self.data.told) {
            self.data.told = state;
            self.events.write(&Event::Filesystems {
                state: filesystems(state),
            });
        }
        for Outcome { ticket, result } in outcomes {
            if let Some((request, reply)) = self.data.vss.remove(ticket) {
                if let Ok(VssAnswer::Frozen { .. }) = result {
                    self.data.freezer = Some(reply.waiter().clone());
                }
                reply.send(self.told(match result {
                    Ok(done) => Ok(vss_answer(request, done)),
                    Err(error) => Err(vss_error(request, error)),
                }));
            }
        }
    }

    fn pump_file(&mut self, host: &mut Bus, now: Duration) {
        let Some(file) = &self.data.file else {
            return;
        };
        let Some(relid) = host.find::<Fcopy>() else {
            return;
        };
        let Some(device) = host.device_mut::<Fcopy>(relid) else {
            return;
        };
        let mut poke = false;
        if !file.cancelled && device.progress().is_some_and(|progress| progress.started) {
            file.pipe.set_ready();
            let data = file.pipe.take(device.room());
            if !data.is_empty() {
                device.push(now, &data);
                poke = true;
            }
        }
        if poke {
            host.poke(now, relid);
        }
        let device = host.device_mut::<Fcopy>(relid);
        let Some(outcome) = device.and_then(Fcopy::take_outcome) else {
            return;
        };
        if let Some(file) = self.data.file.take_if(|file| file.ticket == outcome.ticket) {
            let path = &file.path;
            file.reply.send(match outcome.result {
                Ok(copied) => Ok(json!({
                    "path": path,
                    "size": copied.size,
                    "fragments": copied.fragments,
                })),
                Err(failure) => Err(copy_error(path, failure)),
            });
        }
    }
}

const fn filesystems(state: Filesystems) -> &'static str {
    match state {
        Filesystems::Thawed => "thawed",
        Filesystems::Freezing => "freezing",
        Filesystems::Frozen { .. } => "frozen",
        Filesystems::MaybeFrozen => "unknown",
    }
}

fn kvp_answer(request: &KvpRequest, done: KvpAnswer) -> Answer {
    match done {
        KvpAnswer::Done => Ok(json!({"done": true})),
        KvpAnswer::Items(listing) => answer(&list(listing)),
        KvpAnswer::Item(Some(item)) => Ok(json!({"value": item.value})),
        KvpAnswer::Item(None) => {
            let what = match request {
                KvpRequest::Get(pool, key) => format!("the pool {pool} has no item '{key}'"),
                _ => "there is no such item".into(),
            };
            Err(ApiError::new(404, "not-found", "guest", what))
        }
        KvpAnswer::Ip(info) => answer(&ip(info)),
    }
}

fn list(listing: Listing) -> ItemList {
    let items = listing.items.into_iter().map(|item| ItemEntry {
        key: item.key,
        value: item.value,
    });
    ItemList {
        items: items.collect(),
        unreadable: listing.unreadable,
        cut: listing.cut,
        next: listing.next,
    }
}

fn ip(info: IpInfo) -> IpEntry {
    let addresses = info.addresses.into_iter().map(|ip| match ip.prefix {
        Some(prefix) => format!("{}/{prefix}", ip.address),
        None => ip.address,
    });
    IpEntry {
        addresses: addresses.collect(),
        gateways: info.gateways,
        dns: info.dns,
        dhcp: info.dhcp,
        ipv4: info.ipv4,
        ipv6: info.ipv6,
    }
}

fn kvp_error(request: &KvpRequest, error: ServiceError) -> ApiError {
    use ics_devices::wire::HResult;
    let mut api = api_error(Service::Kvp, error);
    if let (KvpRequest::Delete(pool, key), Some(HResult::CONT)) = (request, error.hresult()) {
        (api.status, api.code) = (404, "not-found".into());
        api.message = format!("the pool {pool} has no item '{key}'");
    }
    api
}

fn vss_answer(request: VssRequest, done: VssAnswer) -> serde_json::Value {
    match (request, done) {
        (_, VssAnswer::Possible) => json!({"possible": true}),
        (VssRequest::Freeze { max }, _) => {
            json!({"frozen": true, "max_ms": super::millis(max)})
        }
        (_, VssAnswer::Thawed { was_frozen }) => {
            json!({"thawed": true, "was_frozen": was_frozen})
        }
        (_, VssAnswer::Frozen { .. }) => json!({"frozen": true}),
    }
}

fn vss_error(request: VssRequest, error: ServiceError) -> ApiError {
    let mut api = api_error(Service::Vss, error);
    if request == VssRequest::Thaw && error == ServiceError::Paused {
        api.message.push_str("; what is frozen thaws then");
    }
    if matches!(request, VssRequest::Freeze { .. }) && matches!(error, ServiceError::Guest(_)) {
        api.message.push_str(
            "; a file system could not be frozen (the guest's log says which), and all \
                 are thawed",
        );
    }
    api
}

fn copy_error(path: &str, failure: FcopyFailure) -> ApiError {
    let error = failure.error;
    if let FcopyError::Service(error) = error {
        let mut api = api_error(Service::Fcopy, error);
        if error == ServiceError::Disabled {
            api.message
                .push_str(" (vmmctl ic enable fcopy, or vmm --ic +fcopy, turns it on)");
        }
        return api;
    }
    let status = match error {
        FcopyError::Exists => 409,
        FcopyError::NoDirectory => 404,
        FcopyError::Name(_) => 400,
        FcopyError::DiskFull => 507,
        _ => 502,
    };
    let message = format!("{path}: {failure}");
    let mut api = ApiError::new(status, error.code(), error.layer(), message);
    api.hresult = error.hresult().map(|status| status.0);
    api
}
