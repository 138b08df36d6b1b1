// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the services are: in the list of the API, and in events of what has changed.

use std::time::Duration;

use ics_devices::{
    Fcopy, Health, Heartbeat, Kvp, Service, ServiceState, ServiceStatus, Shutdown, TimeSync, Vss,
};

use super::{AVAILABLE, Bus, Services};
use crate::api::types::ServiceEntry;
use crate::events::Event;

/// Changes told within a window; a restart of all services is a dozen.
const MAX_TOLD: u32 = 64;
const WINDOW: Duration = Duration::from_secs(5);

impl Services {
    /// A guest can change states as fast as it likes; what it does too often is
    /// told when the next window opens, as it is then.
    pub(super) fn tell(&mut self, host: &Bus, now: Duration) {
        if now >= self.window.saturating_add(WINDOW) {
            (self.window, self.told_in_window) = (now, 0);
        }
        if self.told_in_window >= MAX_TOLD {
            return;
        }
        for service in AVAILABLE {
            let state = self.state(host, now, service);
            let before = self.told.insert(service, state);
            if before.unwrap_or(ServiceState::Disabled) != state {
                self.told_in_window += 1;
                self.events.write(&Event::Service {
                    name: service.name(),
                    state: state.name(),
                    detail: self.status(host, now, service).detail,
                });
            }
        }
        let health = self.health(host);
        if health != self.told_health {
            self.told_health = health;
            self.told_in_window += 1;
            self.events.write(&Event::Health {
                health: health.name(),
            });
        }
    }

    /// What the heartbeat tells of the guest.
    pub fn health(&self, host: &Bus) -> Health {
        if self.paused {
            return Health::Paused;
        }
        host.find::<Heartbeat>()
            .and_then(|relid| host.device::<Heartbeat>(relid))
            .map_or(Health::NoContact, Heartbeat::health)
    }

    /// All services, as the API lists them.
    pub fn list(&self, host: &Bus, now: Duration) -> Vec<ServiceEntry> {
        let entry = |service| self.entry(host, now, service);
        AVAILABLE.into_iter().map(entry).collect()
    }

    pub(super) fn entry(&self, host: &Bus, now: Duration, service: Service) -> ServiceEntry {
        let status = self.status(host, now, service);
        ServiceEntry {
            name: service.name().into(),
            enabled: self.is_enabled(service),
            state: status.state.name().into(),
            framework: status.framework.map(|version| version.to_string()),
            version: status.version.map(|version| version.to_string()),
            detail: status.detail,
        }
    }

    fn status(&self, host: &Bus, now: Duration, service: Service) -> ServiceStatus {
        let status = self.relid(service, host).and_then(|relid| match service {
            Service::Heartbeat => Some(host.device::<Heartbeat>(relid)?.status(now)),
            Service::Shutdown => Some(host.device::<Shutdown>(relid)?.status(now)),
            Service::TimeSync => Some(host.device::<TimeSync>(relid)?.status(now)),
            Service::Kvp => Some(host.device::<Kvp>(relid)?.status(now)),
            Service::Vss => Some(host.device::<Vss>(relid)?.status(now)),
            Service::Fcopy => Some(host.device::<Fcopy>(relid)?.status(now)),
        });
        status.unwrap_or_else(|| ServiceStatus::disabled(service))
    }

    fn state(&self, host: &Bus, now: Duration, service: Service) -> ServiceState {
        let state = self.relid(service, host).and_then(|relid| match service {
            Service::Heartbeat => Some(host.device::<Heartbeat>(relid)?.state(now)),
            Service::Shutdown => Some(host.device::<Shutdown>(relid)?.state(now)),
            Service::TimeSync => Some(host.device::<TimeSync>(relid)?.state(now)),
            Service::Kvp => Some(host.device::<Kvp>(relid)?.state(now)),
            Service::Vss => Some(host.device::<Vss>(relid)?.state(now)),
            Service::Fcopy => Some(host.device::<Fcopy>(relid)?.state(now)),
        });
        state.unwrap_or(ServiceState::Disabled)
    }
}
