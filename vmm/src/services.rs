// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The integration services of a machine: on the bus, in answers of the API,
//! and in events.
//!
//! Lives on the bus thread. What takes the guest's answer keeps its [`Reply`]
//! here until the service has an outcome; if the machine ends before, dropping
//! the reply tells the client so. A client that hangs up before takes what it asked
//! for with it: the request is cancelled, in the service's queue too.

pub mod data;
mod pending;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ics_devices::shutdown::ShutdownProtocol;
use ics_devices::timesync::TimeSyncProtocol;
use ics_devices::vss::Needed;
use ics_devices::{
    Accepted, Fcopy, Filesystems, Health, Heartbeat, Ic, Kvp, Outcome, Protocol, Service,
    ServiceError, ServiceKind, ServiceSet, ServiceState, Shutdown, ShutdownAction, ShutdownRequest,
    Synced, Ticket, TimeSample, TimeSync, Vss,
};
use parking_lot::Mutex;
use serde_json::json;
use vmbus::host::{Device, Host};
use vmbus::wire::Relid;

use crate::api::types::{Answer, ApiError, PowerAction, PowerBody, TimeStatus, answer};
use crate::api::{Op, Reply};
use crate::events::{Event, EventHub};
use data::Data;
use pending::Pending;
use vmbus_kvm::Hyperv;

/// Which services are offered: what host and clients have agreed on, also for the
/// machine after a reset.
pub type SharedSet = Arc<Mutex<ServiceSet>>;

/// The services that have a channel.
pub const AVAILABLE: [Service; 6] = Service::ALL;
/// How long the guest may take to accept a new time.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// What to do about a VM that is paused.
pub const RESUME: &str = " (vmmctl resume lets it go on)";

type Bus = Host;

/// Does something with each of these devices that is on the bus.
macro_rules! each {
    ($host:ident, [$($kind:ty),*], |$relid:pat_param, $device:ident| $act:expr) => {$(
        if let Some(relid) = $host.find::<$kind>()
            && let Some($device) = $host.device_mut::<$kind>(relid)
        {
            let $relid = relid;
            $act;
        }
    )*};
}

/// The services of one machine.
pub struct Services {
    enabled: SharedSet,
    hyperv: Arc<Hyperv>,
    events: EventHub,
    /// Offered, or rescinded and not yet released.
    relids: BTreeMap<Service, Relid>,
    paused: bool,
    /// Somebody wants to know what the services are like.
    watched: bool,
    /// The guest has accepted to shut down.
    stopping: bool,
    shutdowns: Pending<PowerAction>,
    syncs: Pending<()>,
    data: Data,
    /// The last device of the backup service went before the guest had thawed.
    left_frozen: bool,
    /// What was told by events last.
    told: BTreeMap<Service, ServiceState>,
    told_health: Health,
    window: Duration,
    told_in_window: u32,
}

impl Services {
    /// Of a machine that offers `enabled`.
    pub fn new(enabled: SharedSet, hyperv: Arc<Hyperv>, events: EventHub, data: Data) -> Self {
        Self {
            enabled,
            hyperv,
            events,
            relids: BTreeMap::new(),
            paused: false,
            watched: true,
            stopping: false,
            shutdowns: Pending::new(data.bell()),
            syncs: Pending::new(data.bell()),
            data,
            left_frozen: false,
            told: BTreeMap::new(),
            told_health: Health::NoContact,
            window: Duration::ZERO,
            told_in_window: 0,
        }
    }

    /// The channels of services.
    pub fn relids(&self) -> BTreeSet<Relid> {
        self.relids.values().copied().collect()
    }

    /// Offers what is enabled and not on the bus. A service that was rescinded
    /// waits until the guest has released it.
    pub fn offer(&mut self, host: &mut Bus, now: Duration) {
        for service in AVAILABLE {
            if !self.is_enabled(service) || self.relid(service, host).is_some() {
                continue;
            }
            match host.offer(now, self.make(service, now)) {
                Ok(relid) => {
                    self.relids.insert(service, relid);
                    self.left_frozen &= service != Service::Vss;
                }
                Err(error) => log::debug!("{service}: {error}"),
            }
        }
    }

    fn make(&self, service: Service, now: Duration) -> Box<dyn Device> {
        macro_rules! boxed {
            ($device:expr) => {{
                let mut device = $device;
                device.watch(self.watched);
                if self.paused {
                    device.pause(now);
                }
                Box::new(device)
            }};
        }
        match service {
            Service::Heartbeat => boxed!(Heartbeat::new()),
            Service::Shutdown => boxed!(Shutdown::new()),
            Service::TimeSync => {
                let hyperv = Arc::clone(&self.hyperv);
                boxed!(TimeSync::new(Box::new(move || {
                    let sample = hyperv.clock_sample();
                    TimeSample::from_unix(sample.unix, sample.reference)
                })))
            }
            Service::Kvp => boxed!(self.data.kvp()),
            Service::Vss if self.left_frozen => boxed!(Vss::new().thawing_first(now)),
            Service::Vss => boxed!(Vss::new()),
            Service::Fcopy => boxed!(Fcopy::new()),
        }
    }

    /// The vCPUs stand still, or go on.
    pub fn set_paused(&mut self, host: &mut Bus, now: Duration, paused: bool) {
        self.paused = paused;
        each!(
            host,
            [Heartbeat, Shutdown, TimeSync, Kvp, Vss, Fcopy],
            |relid, device| {
                if paused {
                    device.pause(now);
                } else {
                    device.resume(now);
                }
                host.poke(now, relid);
            }
        );
    }

    /// Somebody begins to watch what the services are like, or nobody does any more.
    pub fn set_watched(&mut self, host: &mut Bus, now: Duration, watched: bool) {
        self.watched = watched;
        each!(host, [Kvp, Vss, Fcopy], |relid, device| {
            device.watch(watched);
            host.poke(now, relid);
        });
    }

    /// Whether a guest that was asked for its daemons is still to answer.
    pub fn is_looking(&self, host: &mut Bus) -> bool {
        let mut looking = false;
        each!(host, [Kvp, Vss, Fcopy], |_, device| looking |=
            device.is_looking());
        looking
    }

    /// Does what a client wants.
    pub fn call(&mut self, host: &mut Bus, now: Duration, op: Op, reply: Reply) {
        if reply.waiter().is_gone() && !matches!(op, Op::SetService(..)) {
            // It has not begun, and now it will not.
            return reply.abandon();
        }
        match op {
            Op::Power(body) => self.shutdown(host, now, &body, reply),
            Op::SetService(name, enabled) => {
                reply.send(self.set_enabled(host, now, &name, enabled));
            }
            Op::Time => reply.send(self.time(host, now)),
            Op::TimeSync => self.sync(host, now, reply),
            Op::Kvp(request) => self.kvp(host, now, request, reply),
            Op::Vss(request) => self.vss(host, now, request, reply),
            Op::VssState => reply.send(self.vss_state(host, now)),
            Op::Copy(file) => self.copy(host, now, file, reply),
            // The bus has done these.
            Op::Status(_) | Op::Services | Op::Hvsocket(_) => {
                reply.send(Err(ApiError::bad_request("not for the services")));
            }
        }
    }

    fn shutdown(&mut self, host: &mut Bus, now: Duration, body: &PowerBody, reply: Reply) {
        let action = match body.action {
            PowerAction::Reboot => ShutdownAction::Reboot,
            PowerAction::Hibernate => ShutdownAction::Hibernate,
            _ => ShutdownAction::PowerOff,
        };
        let mut request = ShutdownRequest::new(action);
        request.force = body.force;
        let limit = Duration::from_millis(body.timeout_ms);
        let result = self
            .device::<Shutdown>(host, Service::Shutdown)
            .and_then(|relid| {
                let device = host.device_mut::<Shutdown>(relid);
                let ticket = device
                    .ok_or(ServiceError::NotOffered)?
                    .request(now, request, limit)?;
                Ok((relid, ticket))
            });
        match result {
            Ok((relid, ticket)) => {
                self.shutdowns.insert(ticket, body.action, reply);
                host.poke(now, relid);
            }
            Err(error) => reply.send(Err(api_error(Service::Shutdown, error))),
        }
    }

    fn sync(&mut self, host: &mut Bus, now: Duration, reply: Reply) {
        let result = self
            .device::<TimeSync>(host, Service::TimeSync)
            .and_then(|relid| {
                let device = host.device_mut::<TimeSync>(relid);
                let ticket = device
                    .ok_or(ServiceError::NotOffered)?
                    .sync_now(now, SYNC_LIMIT)?;
                Ok((relid, ticket))
            });
        match result {
            Ok((relid, ticket)) => {
                self.syncs.insert(ticket, (), reply);
                host.poke(now, relid);
            }
            Err(error) => reply.send(Err(api_error(Service::TimeSync, error))),
        }
    }

    fn time(&self, host: &Bus, now: Duration) -> Answer {
        let relid = self
            .device::<TimeSync>(host, Service::TimeSync)
            .map_err(|error| api_error(Service::TimeSync, error))?;
        let device = host.device::<TimeSync>(relid).ok_or_else(ApiError::gone)?;
        answer(&TimeStatus {
            guest_offset_us: device.guest_offset().map(|units| units / 10),
            syncs: device.syncs_sent(),
            samples: device.samples_sent(),
            last_message_ms: device
                .last_message()
                .map(|at| millis(now.saturating_sub(at))),
        })
    }

    fn set_enabled(&mut self, host: &mut Bus, now: Duration, name: &str, on: bool) -> Answer {
        let ServiceKind::Ic(service) = find(name)? else {
            return Err(ApiError::bad_request("not for the services"));
        };
        if service == Service::Vss && !on {
            if let Some(needed) = needed(host, now) {
                return Err(self.needs_vss(needed));
            }
            self.left_frozen |= may_be_frozen(host);
        }
        let set = *self.enabled.lock();
        *self.enabled.lock() = if on {
            set.with(service)
        } else {
            set.without(service)
        };
        if on {
            self.offer(host, now);
        } else if let Some(relid) = self.relids.remove(&service) {
            // The device takes what it owes with it.
            let error = api_error(service, ServiceError::Disabled);
            match service {
                Service::Shutdown => self.shutdowns.refuse_all(&error),
                Service::TimeSync => self.syncs.refuse_all(&error),
                other => self.data.disabled(other, &error),
            }
            // It may have gone with a session already.
            let _ = host.rescind(now, relid);
        }
        answer(&self.entry(host, now, service))
    }

    /// Why the backup service cannot be taken away now.
    fn needs_vss(&self, needed: Needed) -> ApiError {
        let message = match needed {
            _ if self.paused => {
                "vss: the guest's file systems are frozen, and the VM is paused: let it go on \
                 (vmmctl resume) and thaw them (vmmctl vss thaw) first"
                    .into()
            }
            Needed::Frozen => {
                "vss: the guest's file systems are frozen, and thawing them needs it: thaw them \
                 first (vmmctl vss thaw), or wait for the deadline (vmmctl vss status)"
                    .into()
            }
            Needed::Thawing { left } => format!(
                "vss: the guest is asked to thaw its file systems, and has not said that it did: \
                 try again in {} s, then it need not have",
                left.as_secs() + 1
            ),
        };
        ApiError::new(409, "busy", "host", message)
    }

    /// Cancels what was asked for by clients that have hung up.
    fn end_abandoned(&mut self, host: &mut Bus, now: Duration) {
        cancel::<ShutdownProtocol>(host, now, &self.shutdowns.take_abandoned());
        cancel::<TimeSyncProtocol>(host, now, &self.syncs.take_abandoned());
        self.end_abandoned_data(host, now);
    }

    /// An outcome as its client is told it: what a paused guest has not done, it could
    /// not do.
    fn told(&self, mut answer: Answer) -> Answer {
        if self.paused
            && let Err(error) = &mut answer
            && error.code == "timeout"
        {
            error.message.push_str(": the VM is paused");
            error.message.push_str(RESUME);
        }
        answer
    }

    /// Gives the outcomes that there are to those who wait for them, and tells
    /// of what has changed. Before the bus's actions are done: a device that is
    /// gone has nothing to say any more.
    pub fn settle(&mut self, host: &mut Bus, now: Duration) {
        self.end_abandoned(host, now);
        while let Some(outcome) = host
            .find::<Shutdown>()
            .and_then(|relid| host.device_mut::<Shutdown>(relid)?.take_outcome())
        {
            self.shutdown_outcome(outcome);
        }
        while let Some(outcome) = host
            .find::<TimeSync>()
            .and_then(|relid| host.device_mut::<TimeSync>(relid)?.take_outcome())
        {
            let Outcome { ticket, result } = outcome;
            if let Some(((), reply)) = self.syncs.remove(ticket) {
                reply.send(self.told(match result {
                    Ok(Synced { .. }) => Ok(json!({"synced": true})),
                    Err(error) => Err(api_error(Service::TimeSync, error)),
                }));
            }
        }
        self.settle_data(host, now);
        self.tell(host, now);
    }

    fn shutdown_outcome(&mut self, outcome: Outcome<Accepted>) {
        let Some((action, reply)) = self.shutdowns.remove(outcome.ticket) else {
            return;
        };
        match outcome.result {
            Ok(Accepted { .. }) => {
                let action = match action {
                    PowerAction::Reboot => "reboot",
                    PowerAction::Hibernate => "hibernate",
                    _ => "shutdown",
                };
                self.stopping = true;
                self.events.write(&Event::ShutdownAccepted { action });
                reply.send(Ok(json!({"accepted": true})));
            }
            Err(error) => reply.send(self.told(Err(api_error(Service::Shutdown, error)))),
        }
    }

    /// Whether the guest has accepted to shut down, and is the one that did.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// A kernel has connected; another one may have accepted to shut down.
    pub fn session_started(&mut self) {
        self.stopping = false;
    }

    fn is_enabled(&self, service: Service) -> bool {
        self.enabled.lock().contains(service)
    }

    /// The service's channel, if it is offered.
    fn relid(&self, service: Service, host: &Bus) -> Option<Relid> {
        let relid = *self.relids.get(&service)?;
        host.channel_state(relid).map(|_| relid)
    }

    /// The channel of a service that a client wants something of.
    fn device<T: Device>(&self, host: &Bus, service: Service) -> Result<Relid, ServiceError> {
        if !self.is_enabled(service) {
            return Err(ServiceError::Disabled);
        }
        let relid = host.find::<T>().ok_or(ServiceError::NotOffered)?;
        match host.channel_state(relid) {
            Some(state) if state.name() != "not offered" => Ok(relid),
            _ => Err(ServiceError::NotOffered),
        }
    }
}

fn vss_device(host: &Bus) -> Option<&Vss> {
    host.device::<Vss>(host.find::<Vss>()?)
}

/// Whether the guest's file systems would stay frozen without the backup service.
fn needed(host: &Bus, now: Duration) -> Option<Needed> {
    vss_device(host)?.needed(now)
}

/// The guest has not said that its file systems are thawed.
fn may_be_frozen(host: &Bus) -> bool {
    vss_device(host).is_some_and(|device| device.filesystems() != Filesystems::Thawed)
}

/// Cancels requests of a service's.
fn cancel<P: Protocol>(host: &mut Bus, now: Duration, tickets: &[Ticket]) {
    let Some(relid) = host.find::<Ic<P>>().filter(|_| !tickets.is_empty()) else {
        return;
    };
    if let Some(device) = host.device_mut::<Ic<P>>(relid) {
        for ticket in tickets {
            device.cancel(now, *ticket);
        }
        host.poke(now, relid);
    }
}

/// The service that a client names.
pub fn find(name: &str) -> Result<ServiceKind, ApiError> {
    name.parse::<ServiceKind>()
        .map_err(|error| ApiError::new(404, "not-found", "host", error.to_string()))
}

fn api_error(service: Service, error: ServiceError) -> ApiError {
    let status = match error {
        ServiceError::Disabled
        | ServiceError::Busy
        | ServiceError::Paused
        | ServiceError::Cancelled => 409,
        ServiceError::Guest(_) | ServiceError::BadAnswer => 502,
        ServiceError::Timeout | ServiceError::Unsent => 504,
        ServiceError::Unsupported(_) => 501,
        _ => 503,
    };
    let what_to_do = match error {
        ServiceError::Paused => RESUME,
        _ => "",
    };
    let mut api = ApiError::new(
        status,
        error.code(),
        error.layer(),
        format!("{service}: {error}{what_to_do}"),
    );
    api.hresult = error.hresult().map(|status| status.0);
    api
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
