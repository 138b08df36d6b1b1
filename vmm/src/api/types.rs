// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the control API says and takes, for both its ends.
//!
//! `docs/openapi.json` describes the same to others.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, Value};

use super::query::listed;

/// `GET /v1/vm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// The VM's name.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// Where it is in its life.
    pub state: VmState,
    /// Since its first start.
    pub uptime_ms: u64,
    /// How often it has been reset.
    pub resets: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// `kernel` or `user`.
    pub synic: String,
    /// What the heartbeat tells.
    pub health: String,
    /// The bus.
    pub vmbus: BusStatus,
    /// The Unix socket for Hyper-V sockets; absent if the VM has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vsock: Option<String>,
    /// The services.
    pub services: Vec<ServiceEntry>,
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Being made.
    Starting,
    /// Running.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// The guest has accepted to shut down.
    Stopping,
    /// Gone.
    Stopped,
    /// The guest has told that it crashed.
    Crashed,
}

/// The bus in a [`VmStatus`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusStatus {
    /// The protocol version; absent while the guest is not connected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// What the guest calls itself; absent until it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest_os: Option<String>,
    /// Channels that the guest has open.
    pub channels_open: usize,
    /// How often the guest has broken the protocol.
    pub violations: u64,
}

/// A service in a [`VmStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Its name.
    pub name: String,
    /// Whether the host offers it.
    pub enabled: bool,
    /// How far it got.
    pub state: String,
    /// Framework version, once agreed on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub framework: Option<String>,
    /// Service version, once agreed on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
    /// One line for people.
    pub detail: String,
}

/// `PUT /v1/vm/power`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerBody {
    /// What to do.
    pub action: PowerAction,
    /// For what asks the guest: it is not to be hindered by its programs.
    #[serde(default)]
    pub force: bool,
    /// For what asks the guest: how long its answer may take.
    #[serde(default = "default_power_timeout", deserialize_with = "whole")]
    pub timeout_ms: u64,
    /// For `kill`: it ends a shutdown that the guest did not do, so `vmm` exits
    /// as after a shutdown.
    #[serde(default)]
    pub as_shutdown: bool,
}

impl PowerBody {
    /// An action without anything special.
    pub fn of(action: PowerAction) -> Self {
        Self {
            action,
            force: false,
            timeout_ms: default_power_timeout(),
            as_shutdown: false,
        }
    }
}

/// A number from 0 on, also if it is written with a fraction of nothing: to JSON, and
/// to programs that have one kind of number only, `5.0` is `5`.
pub(super) fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = Number::deserialize(from)?;
    whole_number(&number).ok_or_else(|| {
        D::Error::custom(format!(
            "{number} is no whole number from 0 to {}",
            u64::MAX
        ))
    })
}

/// The same of a number that is there.
pub(super) fn whole_number(number: &Number) -> Option<u64> {
    /// All smaller whole numbers are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.as_u64().or_else(|| {
        let number = number.as_f64()?;
        let exact = number.fract() == 0.0 && (0.0..=EXACT).contains(&number);
        let digits = format!("{:.0}", number.abs());
        exact.then(|| digits.parse().ok()).flatten()
    })
}

/// What may be left out, but is not `null`.
pub(super) fn some<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(from).map(Some)
}

fn default_power_timeout() -> u64 {
    60_000
}

/// What `PUT /v1/vm/power` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerAction {
    /// Ask the guest to power off.
    Shutdown,
    /// Ask the guest to reboot.
    Reboot,
    /// Ask the guest to hibernate.
    Hibernate,
    /// End the VM.
    Kill,
    /// Reset the machine.
    Reset,
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Send a non-maskable interrupt to each vCPU.
    Nmi,
}

/// `PATCH /v1/services/NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicePatch {
    /// Whether the host is to offer the service.
    pub enabled: bool,
}

/// `GET /v1/time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeStatus {
    /// Guest's clock less the host's, when it was last known.
    pub guest_offset_us: Option<i64>,
    /// Time synchronisations sent since the channel opened.
    pub syncs: u64,
    /// Samples sent since the channel opened.
    pub samples: u64,
    /// Since the guest was last told the time.
    pub last_message_ms: Option<u64>,
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// A word for programs.
    pub code: String,
    /// The layer that failed.
    pub layer: String,
    /// A sentence for people.
    pub message: String,
    /// The guest's status, if it gave one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hresult: Option<u32>,
    /// The HTTP status.
    #[serde(skip, default = "default_status")]
    pub status: u16,
    /// The methods that would do, where this one does not.
    #[serde(skip)]
    pub allow: &'static [&'static str],
}

fn default_status() -> u16 {
    500
}

/// `{"error": …}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

/// What an operation comes to.
pub type Answer = Result<Value, ApiError>;

impl ApiError {
    /// An error with these words.
    pub fn new(status: u16, code: &str, layer: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            layer: layer.into(),
            message: message.into(),
            hresult: None,
            status,
            allow: &[],
        }
    }

    /// The path takes other methods.
    pub fn method_not_allowed(path: &str, allow: &'static [&'static str], method: &str) -> Self {
        let message = format!("{path} takes {}, not {method}", listed(allow, "or"));
        Self {
            allow,
            ..Self::new(405, "method-not-allowed", "api", message)
        }
    }

    /// The client asked for something that makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "bad-request", "api", message)
    }

    /// The VM is not there to answer.
    pub fn gone() -> Self {
        Self::new(
            503,
            "gone",
            "vm",
            "the machine ended or was reset before it could answer",
        )
    }
}

/// A serializable value as an answer.
pub fn answer(value: &impl Serialize) -> Answer {
    serde_json::to_value(value)
        .map_err(|error| ApiError::new(500, "internal", "api", error.to_string()))
}
