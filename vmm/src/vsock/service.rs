// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hyper-V sockets as one of a machine's services: on or off, in the status, in
//! events, and the registry's requests.
//!
//! They have no channel of their own, and so no driver whose state could be told:
//! they are `ready` when the guest is on a bus that has them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ics_devices::{ServiceKind, ServiceState};
use parking_lot::Mutex;
use serde_json::json;
use vmbus::host::Host;
use vmbus::hvsock::port_of;
use vmbus::wire::{ProtocolVersion, Relid, TlConnectRequest};
use vmm_sys_util::epoll::{Epoll, EventSet};

use super::registry::{HvsocketEntry, HvsocketRequest, Registry};
use super::{Vsock, VsockSettings};
use crate::api::types::{Answer, ApiError, ServiceEntry, answer};
use crate::api::{Call, Op};
use crate::events::{Event, EventHub};
use crate::hvsocket::is_listening;
use crate::services::SharedSet;

type Bus = Host;

/// The first version of the protocol that has them.
const FIRST_VERSION: ProtocolVersion = ProtocolVersion::V4_0;
/// Changes told within a window: a guest can connect and leave as it likes.
const MAX_TOLD: u32 = 16;
const WINDOW: Duration = Duration::from_secs(5);

/// What there is of sockets, and the same for every machine of the process.
#[derive(Debug, Clone)]
pub struct SocketSettings {
    /// Where they end, or why they cannot.
    pub listener: Result<Arc<VsockSettings>, String>,
    /// The services' names.
    pub registry: Arc<Mutex<Registry>>,
}

/// The sockets of one machine, or why it has none.
pub struct Sockets {
    vsock: Result<Vsock, String>,
    registry: Arc<Mutex<Registry>>,
    /// What is agreed on with clients, for the machine after a reset.
    services: SharedSet,
    events: EventHub,
    told: ServiceState,
    window: Duration,
    told_in_window: u32,
}

impl Sockets {
    /// Watches the listener as `listener`, and its ends as `base` and more.
    pub fn start(
        settings: &SocketSettings,
        services: SharedSet,
        epoll: &Arc<Epoll>,
        (listener, base): (u64, u64),
        events: EventHub,
    ) -> io::Result<Self> {
        let registry = Arc::clone(&settings.registry);
        let enabled = services.lock().contains(ServiceKind::Vsock);
        let vsock = match &settings.listener {
            Err(why) => Err(why.clone()),
            Ok(settings) => Ok(Vsock::start(
                Arc::clone(settings),
                Arc::clone(&registry),
                enabled,
                Arc::clone(epoll),
                listener,
                base,
            )?),
        };
        Ok(Self {
            vsock,
            registry,
            services,
            events,
            told: ServiceState::Disabled,
            window: Duration::ZERO,
            told_in_window: 0,
        })
    }

    /// Takes clients that wait.
    pub fn accept(&mut self, now: Duration) {
        if let Ok(vsock) = &mut self.vsock {
            vsock.accept(now);
        }
    }

    /// The vCPUs stand still, or go on.
    pub fn set_paused(&mut self, paused: bool) {
        if let Ok(vsock) = &mut self.vsock {
            vsock.paused = paused;
        }
    }

    /// When to call [`tick`](Self::tick).
    pub fn deadline(&self) -> Option<Duration> {
        self.vsock.as_ref().ok().and_then(|vsock| vsock.starved)
    }

    /// The deadline may have come.
    pub fn tick(&mut self, now: Duration) {
        if let Ok(vsock) = &mut self.vsock {
            vsock.tick(now);
        }
    }

    /// Something happened to an end.
    pub fn event(&mut self, host: &mut Bus, now: Duration, token: u64, events: EventSet) {
        if let Ok(vsock) = &mut self.vsock {
            vsock.event(host, now, token, events);
        }
    }

    /// The guest wants a service of this host.
    pub fn request(&mut self, host: &mut Bus, now: Duration, request: &TlConnectRequest) {
        match &mut self.vsock {
            Ok(vsock) => vsock.request(host, now, request),
            Err(_) => host.refuse_connect(now, request),
        }
    }

    /// The guest has released a channel.
    pub fn released(&mut self, relid: Relid) {
        if let Ok(vsock) = &mut self.vsock {
            vsock.released(relid);
        }
    }

    /// Does what a client of the API wants, or gives the call back.
    pub fn call(&mut self, host: &mut Bus, now: Duration, call: Call) -> Option<Call> {
        let answer = match &call.op {
            Op::Hvsocket(request) => self.registered(request),
            Op::SetService(name, enabled) if name == ServiceKind::Vsock.name() => {
                self.set_enabled(host, now, *enabled)
            }
            _ => return Some(call),
        };
        call.reply.send(answer);
        None
    }

    fn set_enabled(&mut self, host: &mut Bus, now: Duration, enabled: bool) -> Answer {
        match &mut self.vsock {
            Ok(vsock) => {
                vsock.set_enabled(host, now, enabled);
                let set = *self.services.lock();
                *self.services.lock() = if enabled {
                    set.with(ServiceKind::Vsock)
                } else {
                    set.without(ServiceKind::Vsock)
                };
            }
            Err(why) if enabled => {
                let message = format!("vsock: this VM has no socket for it: {why}");
                return Err(ApiError::new(501, "unsupported", "host", message));
            }
            // It is so already.
            Err(_) => {}
        }
        answer(&self.entry(host))
    }

    fn registered(&mut self, request: &HvsocketRequest) -> Answer {
        match request {
            HvsocketRequest::List => answer(&self.list()),
            HvsocketRequest::Register(service, name) => {
                self.registry.lock().register(*service, name.clone())?;
                let guid = service.to_string();
                answer(&self.list().into_iter().find(|entry| entry.guid == guid))
            }
            HvsocketRequest::Unregister(service) => {
                self.registry.lock().unregister(service)?;
                Ok(json!({"done": true}))
            }
        }
    }

    fn list(&self) -> Vec<HvsocketEntry> {
        let registry = self.registry.lock();
        let entry = |(service, name): (&_, &_)| {
            let vsock = self.vsock.as_ref().ok();
            let paths = vsock.map(|vsock| vsock.settings.peers(service, Some(name)));
            let mut paths: Vec<_> = paths.into_iter().flatten().collect();
            let listens = paths.iter().position(|path| is_listening(path));
            let path = (!paths.is_empty()).then(|| paths.swap_remove(listens.unwrap_or(0)));
            HvsocketEntry {
                guid: service.to_string(),
                port: port_of(service),
                name: name.to_string(),
                listening: listens.is_some(),
                path: path.map(|path| path.display().to_string()),
                connections: vsock.map_or(0, |vsock| vsock.connections_of(service)),
            }
        };
        registry.iter().map(entry).collect()
    }

    /// The entry in the list of services.
    pub fn entry(&self, host: &Bus) -> ServiceEntry {
        let state = self.state(host);
        let version = host.session().map(|session| session.version);
        let detail = match (&self.vsock, state) {
            (Err(why), _) => why.clone(),
            (_, ServiceState::Disabled) => String::new(),
            (Ok(vsock), ServiceState::Ready) => match vsock.connections.len() {
                0 => "no connections".into(),
                1 => "1 connection".into(),
                many => format!("{many} connections"),
            },
            _ => version.map_or_else(
                || "the guest is not connected to the bus".into(),
                |version| format!("the guest speaks VMBus {version}, which has no sockets"),
            ),
        };
        ServiceEntry {
            name: ServiceKind::Vsock.name().into(),
            enabled: self.is_enabled(),
            state: state.name().into(),
            framework: None,
            version: None,
            detail,
        }
    }

    fn is_enabled(&self) -> bool {
        self.vsock.as_ref().is_ok_and(|vsock| vsock.enabled)
    }

    fn state(&self, host: &Bus) -> ServiceState {
        let version = host.session().map(|session| session.version);
        match version {
            _ if !self.is_enabled() => ServiceState::Disabled,
            None => ServiceState::Offered,
            Some(version) if version < FIRST_VERSION => ServiceState::Error,
            Some(_) => ServiceState::Ready,
        }
    }

    /// Tells of what has changed; when the guest changes it too often, of how it
    /// is when the next window opens.
    pub fn tell(&mut self, host: &Bus, now: Duration) {
        let state = self.state(host);
        if state == self.told {
            return;
        }
        if now >= self.window.saturating_add(WINDOW) {
            (self.window, self.told_in_window) = (now, 0);
        }
        if self.told_in_window < MAX_TOLD {
            self.told = state;
            self.told_in_window += 1;
            self.events.write(&Event::Service {
                name: ServiceKind::Vsock.name(),
                state: state.name(),
                detail: self.entry(host).detail,
            });
        }
    }
}
