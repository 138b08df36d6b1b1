// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a service is, and why something could not be done: each names the layer
//! at which it stands.
//!
//! ```text
//!   disabled ─► offered ─► open ─► ready
//!                            ├───► no-daemon   the kernel is there, its daemon is not
//!                            └───► error       no version in common, or nonsense
//! ```

use std::fmt;

use crate::service::Service;
use crate::wire::{HResult, IcVersion};

/// How far a service got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceState {
    /// The host does not offer it.
    Disabled,
    /// Offered, and no driver of the guest has opened it.
    Offered,
    /// Open, and the versions are not agreed on.
    Open,
    /// It works.
    Ready,
    /// The guest's kernel is there and its user daemon is not.
    NoDaemon,
    /// It cannot work until the guest opens its channel again.
    Error,
}

impl ServiceState {
    /// The name in commands and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Offered => "offered",
            Self::Open => "open",
            Self::Ready => "ready",
            Self::NoDaemon => "no-daemon",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A service in a status listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Which.
    pub service: Service,
    /// How far it got.
    pub state: ServiceState,
    /// Version of the framework, once agreed on.
    pub framework: Option<IcVersion>,
    /// Version of the service, once agreed on.
    pub version: Option<IcVersion>,
    /// One line for people.
    pub detail: String,
    /// Packets of the guest that were ignored.
    pub ignored: u64,
}

impl ServiceStatus {
    /// Of a service that the host does not offer.
    pub fn disabled(service: Service) -> Self {
        Self {
            service,
            state: ServiceState::Disabled,
            framework: None,
            version: None,
            detail: String::new(),
            ignored: 0,
        }
    }
}

/// Why something could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The host does not offer the service.
    #[error("the service is disabled")]
    Disabled,
    /// The guest has not asked for its offers yet.
    #[error("the service is not offered to the guest yet")]
    NotOffered,
    /// No driver of the guest has the channel open, or none has any more.
    #[error("no driver of the guest has the service's channel open")]
    NotOpen,
    /// The versions are not agreed on.
    #[error("host and guest have not agreed on the service's version")]
    NotNegotiated,
    /// The guest's daemon does not run.
    #[error("the guest's kernel is there, the service's daemon is not")]
    NoDaemon,
    /// The guest refused or failed.
    #[error("the guest answered {0}")]
    Guest(HResult),
    /// The guest answered nonsense.
    #[error("the guest's answer makes no sense")]
    BadAnswer,
    /// The guest did not answer in time.
    #[error("the guest did not answer in time")]
    Timeout,
    /// The request could not be sent in time: the guest still has an earlier
    /// one that it has not answered.
    #[error("the guest still owes the answer to an earlier request")]
    Unsent,
    /// Another request is being answered.
    #[error("another request is being answered")]
    Busy,
    /// The VM is paused, so the guest can do nothing.
    #[error("the VM is paused, and the guest cannot answer before it goes on")]
    Paused,
    /// Whoever asked for it has gone away.
    #[error("whoever asked for it has gone away")]
    Cancelled,
    /// The agreed versions, or the guest's ring, do not allow it.
    #[error("{0}")]
    Unsupported(&'static str),
}

impl ServiceError {
    /// The error's code in the control API.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NotOffered => "not-offered",
            Self::NotOpen => "not-open",
            Self::NotNegotiated => "not-negotiated",
            Self::NoDaemon => "no-daemon",
            Self::Guest(_) | Self::BadAnswer => "guest-error",
            Self::Timeout | Self::Unsent => "timeout",
            Self::Busy | Self::Paused => "busy",
            Self::Cancelled => "cancelled",
            Self::Unsupported(_) => "unsupported",
        }
    }

    /// The layer that failed, in the control API.
    pub const fn layer(self) -> &'static str {
        match self {
            Self::Disabled | Self::Busy | Self::Cancelled => "host",
            Self::Paused => "vm",
            Self::NotOffered => "bus",
            Self::NotOpen => "channel",
            Self::NotNegotiated | Self::Unsupported(_) => "negotiation",
            Self::NoDaemon => "daemon",
            Self::Guest(_) | Self::BadAnswer | Self::Timeout | Self::Unsent => "guest",
        }
    }

    /// The guest's status, if it gave one.
    pub const fn hresult(self) -> Option<HResult> {
        match self {
            Self::Guest(status) => Some(status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_the_guests_status_and_its_meaning() {
        let error = ServiceError::Guest(HResult::FAIL);
        assert_eq!(
            error.to_string(),
            "the guest answered 0x80004005 (unspecified failure)"
        );
        assert_eq!(
            (error.code(), error.layer(), error.hresult()),
            ("guest-error", "guest", Some(HResult::FAIL))
        );
    }
}
