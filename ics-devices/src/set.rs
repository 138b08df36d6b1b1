// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which services a VM has: the list behind `--ic`.
//!
//! ```text
//! list  = first { "," item }
//! first = "all" | "none" | item
//! item  = NAME | "+" NAME | "-" NAME
//! ```
//! A list that begins with a name has only what it names. One that begins with
//! `+` or `-` changes the default.

use std::fmt;
use std::str::FromStr;

use crate::service::Service;

/// Something that can be in the list: an integration service, or Hyper-V
/// sockets, which are no service and have no channel of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// An integration service.
    Ic(Service),
    /// Hyper-V sockets.
    Vsock,
}

impl ServiceKind {
    /// All of them, in the order in which they are listed everywhere.
    pub const ALL: [Self; 7] = [
        Self::Ic(Service::Heartbeat),
        Self::Ic(Service::Shutdown),
        Self::Ic(Service::TimeSync),
        Self::Ic(Service::Kvp),
        Self::Ic(Service::Vss),
        Self::Ic(Service::Fcopy),
        Self::Vsock,
    ];

    /// The name in lists, commands and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ic(service) => service.name(),
            Self::Vsock => "vsock",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Ic(Service::Heartbeat) => 1,
            Self::Ic(Service::Shutdown) => 1 << 1,
            Self::Ic(Service::TimeSync) => 1 << 2,
            Self::Ic(Service::Kvp) => 1 << 3,
            Self::Ic(Service::Vss) => 1 << 4,
            Self::Ic(Service::Fcopy) => 1 << 5,
            Self::Vsock => 1 << 6,
        }
    }
}

impl From<Service> for ServiceKind {
    fn from(service: Service) -> Self {
        Self::Ic(service)
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ServiceKind {
    type Err = ServiceSetError;

    fn from_str(name: &str) -> Result<Self, ServiceSetError> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.name() == name)
            .ok_or_else(|| ServiceSetError::Unknown { name: name.into() })
    }
}

/// Why a list is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceSetError {
    /// A name that nothing has.
    #[error(
        "there is no service '{name}': name any of heartbeat, shutdown, timesync, kvp, vss, \
         fcopy, vsock, or all, or none"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// Nothing between two commas, or nothing at all.
    #[error("a name is missing: write 'none' for no services")]
    Missing,
    /// `all` or `none` behind something else.
    #[error("'{name}' must come first")]
    NotFirst {
        /// `all` or `none`.
        name: &'static str,
    },
    /// A bare name where the list adds to something and takes from it.
    #[error("'{name}' needs a sign here: write '+{name}' or '-{name}'")]
    NeedsSign {
        /// The name.
        name: &'static str,
    },
}

/// A set of services.
///
/// ```
/// use ics_devices::{Service, ServiceKind, ServiceSet};
///
/// let set: ServiceSet = "+fcopy,-vss".parse()?;
/// assert!(set.contains(Service::Fcopy) && set.contains(ServiceKind::Vsock));
/// assert!(!set.contains(Service::Vss));
/// assert_eq!(set.to_string(), "heartbeat,shutdown,timesync,kvp,fcopy,vsock");
///
/// let only: ServiceSet = "shutdown".parse()?;
/// assert_eq!(only.iter().count(), 1);
/// # Ok::<(), ics_devices::ServiceSetError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceSet(u8);

impl ServiceSet {
    /// No services.
    pub const NONE: Self = Self(0);
    /// All services.
    pub const ALL: Self = Self(0x7f);

    /// Whether it has this one.
    pub fn contains(self, kind: impl Into<ServiceKind>) -> bool {
        self.0 & kind.into().bit() != 0
    }

    /// With this one.
    #[must_use]
    pub fn with(self, kind: impl Into<ServiceKind>) -> Self {
        Self(self.0 | kind.into().bit())
    }

    /// Without this one.
    #[must_use]
    pub fn without(self, kind: impl Into<ServiceKind>) -> Self {
        Self(self.0 & !kind.into().bit())
    }

    /// Those that it has, in the usual order.
    pub fn iter(self) -> impl Iterator<Item = ServiceKind> {
        let all = ServiceKind::ALL.into_iter();
        all.filter(move |kind| self.contains(*kind))
    }
}

impl Default for ServiceSet {
    /// All but file copy, as on Hyper-V: it lets the host write into the guest.
    fn default() -> Self {
        Self::ALL.without(Service::Fcopy)
    }
}

/// How the items that came so far go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing came yet.
    Start,
    /// Names add up.
    Names,
    /// Signs change something that is there.
    Signs,
}

impl FromStr for ServiceSet {
    type Err = ServiceSetError;

    fn from_str(list: &str) -> Result<Self, ServiceSetError> {
        let mut mode = Mode::Start;
        let mut set = Self::default();
        for item in list.split(',').map(str::trim) {
            let whole = match item {
                "all" => Some(("all", Self::ALL)),
                "none" => Some(("none", Self::NONE)),
                _ => None,
            };
            if let Some((name, whole)) = whole {
                if mode != Mode::Start {
                    return Err(ServiceSetError::NotFirst { name });
                }
                (set, mode) = (whole, Mode::Signs);
                continue;
            }
            let add = item.strip_prefix('+');
            let name = add.or_else(|| item.strip_prefix('-')).unwrap_or(item);
            if name.is_empty() {
                return Err(ServiceSetError::Missing);
            }
            let kind: ServiceKind = name.parse()?;
            if name.len() < item.len() {
                set = match add {
                    Some(_) => set.with(kind),
                    None => set.without(kind),
                };
                mode = Mode::Signs;
            } else if mode == Mode::Signs {
                return Err(ServiceSetError::NeedsSign { name: kind.name() });
            } else {
                let before = if mode == Mode::Start { Self::NONE } else { set };
                set = before.with(kind);
                mode = Mode::Names;
            }
        }
        Ok(set)
    }
}

impl fmt::Display for ServiceSet {
    /// A list that parses back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(ServiceKind::name).collect();
        f.pad(&match names.as_slice() {
            [] => "none".to_string(),
            names => names.join(","),
        })
    }
}

impl fmt::Debug for ServiceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> String {
        match list.parse::<ServiceSet>() {
            Ok(set) => set.to_string(),
            Err(error) => format!("error: {error}"),
        }
    }

    const ALL_BUT_FCOPY: &str = "heartbeat,shutdown,timesync,kvp,vss,vsock";

    #[test]
    fn the_default_is_all_but_file_copy() {
        assert_eq!(ServiceSet::default().to_string(), ALL_BUT_FCOPY);
    }

    #[test]
    fn a_list_of_names_has_only_these() {
        assert_eq!(parsed("kvp"), "kvp");
        assert_eq!(parsed("kvp,heartbeat,kvp"), "heartbeat,kvp");
        assert_eq!(parsed(" heartbeat , vsock "), "heartbeat,vsock");
        assert_eq!(parsed("heartbeat,kvp,-kvp"), "heartbeat");
    }

    #[test]
    fn signs_change_the_default() {
        assert_eq!(parsed("-vss"), "heartbeat,shutdown,timesync,kvp,vsock");
        assert_eq!(parsed("+fcopy"), ServiceSet::ALL.to_string());
        assert_eq!(parsed("+kvp"), ALL_BUT_FCOPY);
    }

    #[test]
    fn all_and_none_come_first_and_signs_change_them() {
        assert_eq!(parsed("none"), "none");
        assert_eq!(parsed("none,+kvp"), "kvp");
        assert_eq!(parsed("all,-fcopy"), ALL_BUT_FCOPY);
        assert_eq!(parsed("kvp,none"), "error: 'none' must come first");
        assert_eq!(parsed("none,all"), "error: 'all' must come first");
    }

    #[test]
    fn mistakes_say_what_is_accepted() {
        assert_eq!(
            parsed("heartbeet"),
            "error: there is no service 'heartbeet': name any of heartbeat, shutdown, timesync, \
             kvp, vss, fcopy, vsock, or all, or none"
        );
        assert_eq!(
            parsed("+fcopy,kvp"),
            "error: 'kvp' needs a sign here: write '+kvp' or '-kvp'"
        );
        for list in ["", ",", "kvp,", "+", "-", "kvp,,vss"] {
            assert_eq!(
                parsed(list),
                "error: a name is missing: write 'none' for no services",
                "{list:?}"
            );
        }
        assert!(parsed("+all").starts_with("error: there is no service 'all'"));
        assert!(parsed("++kvp").starts_with("error: there is no service '+kvp'"));
    }

    #[test]
    fn every_set_parses_back_from_its_text() {
        for bits in 0..=0x7f {
            let set = ServiceSet(bits);
            assert_eq!(set.to_string().parse(), Ok(set));
        }
    }
}
