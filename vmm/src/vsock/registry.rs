// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The services that have a name: what Hyper-V keeps in its registry under
//! `GuestCommunicationServices`.
//!
//! A name stands for a GUID, nothing more: `CONNECT NAME` reaches the guest's
//! service, and a guest's connection to it is also taken to `PATH_NAME`. Services
//! without a name work as well; only the list does not show them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vmbus::hvsock::{port_of, service_of_port};
use vmbus::wire::Guid;

use crate::api::types::ApiError;

/// Names of one VM. People give them, so they are a few.
pub const MAX_SERVICES: usize = 128;
/// Bytes of a name: it has to fit into a line, and into a socket's path.
pub const MAX_NAME: usize = 64;

/// Reads a service: a vsock port, or a GUID.
pub fn parse_service(text: &str) -> Result<Guid, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|_| digits).map(service_of_port);
    port.or_else(|| text.parse().ok()).ok_or_else(|| {
        format!("'{text}' is neither a port, such as 5000, nor a GUID of 8-4-4-4-12 digits")
    })
}

/// A service's friendly name.
///
/// ```
/// use vmm::vsock::registry::ServiceName;
/// let name: ServiceName = "build agent".parse()?;
/// assert_eq!(name.as_str(), "build agent");
/// assert!("5000".parse::<ServiceName>().is_err(), "that is a port");
/// # Ok::<(), vmm::vsock::registry::NameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too long, or empty.
    #[error("a service's name has 1 to {MAX_NAME} bytes, not {0}")]
    Length(usize),
    /// A character that a path, a line or a terminal would not like.
    #[error(
        "a service's name begins with a letter or digit and has letters, digits, single spaces and \
         . - _ + ( ) in it, not {0:?}"
    )]
    Character(char),
    /// It would be taken for something else.
    #[error("'{0}' is a port or a GUID, not a name")]
    Ambiguous(String),
}

impl ServiceName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(NameError::Length(text.len()));
        }
        let mut before = None;
        for c in text.chars() {
            let fits = match c {
                ' ' => before.is_some_and(|before| before != ' '),
                '.' | '-' | '_' | '+' | '(' | ')' => before.is_some(),
                c => c.is_alphanumeric(),
            };
            if !fits {
                return Err(NameError::Character(c));
            }
            before = Some(c);
        }
        if before == Some(' ') {
            return Err(NameError::Character(' '));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) || text.parse::<Guid>().is_ok() {
            return Err(NameError::Ambiguous(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a service cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Names are for one service each.
    #[error("the name '{name}' is taken by the service {by}")]
    Taken {
        /// The name.
        name: ServiceName,
        /// Who has it.
        by: Guid,
    },
    /// There are too many.
    #[error("{MAX_SERVICES} services have names already: unregister one first")]
    Full,
    /// There is none to remove.
    #[error("the service {0} is not registered")]
    Unknown(Guid),
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let (status, code) = match &error {
            RegistryError::Taken { .. } => (409, "name-taken"),
            RegistryError::Full => (409, "too-many"),
            RegistryError::Unknown(_) => (404, "not-found"),
        };
        Self::new(status, code, "host", error.to_string())
    }
}

/// Services by GUID, and their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    names: BTreeMap<Guid, ServiceName>,
}

impl Registry {
    /// From pairs, such as a command line's.
    pub fn of(pairs: &[(Guid, ServiceName)]) -> Result<Self, RegistryError> {
        let mut registry = Self::default();
        for (service, name) in pairs {
            registry.register(*service, name.clone())?;
        }
        Ok(registry)
    }

    /// Names a service, or names it anew.
    pub fn register(&mut self, service: Guid, name: ServiceName) -> Result<(), RegistryError> {
        match self.find(name.as_str()) {
            Some(by) if by != service => return Err(RegistryError::Taken { name, by }),
            _ => {}
        }
        if self.names.len() >= MAX_SERVICES && !self.names.contains_key(&service) {
            return Err(RegistryError::Full);
        }
        self.names.insert(service, name);
        Ok(())
    }

    /// Forgets a service's name.
    pub fn unregister(&mut self, service: &Guid) -> Result<(), RegistryError> {
        let known = self.names.remove(service).map(drop);
        known.ok_or(RegistryError::Unknown(*service))
    }

    /// The service of a name.
    pub fn find(&self, name: &str) -> Option<Guid> {
        let mut all = self.names.iter();
        all.find(|(_, known)| known.as_str() == name)
            .map(|(service, _)| *service)
    }

    /// The name of a service.
    pub fn name(&self, service: &Guid) -> Option<&ServiceName> {
        self.names.get(service)
    }

    /// All of them, ports first and in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&Guid, &ServiceName)> {
        let mut all: Vec<_> = self.names.iter().collect();
        all.sort_by_key(|(service, _)| (port_of(service).is_none(), port_of(service), **service));
        all.into_iter()
    }
}

/// `/v1/hvsocket/services…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HvsocketRequest {
    /// All that have a name.
    List,
    /// Name one.
    Register(Guid, ServiceName),
    /// Take its name away.
    Unregister(Guid),
}

/// `PUT /v1/hvsocket/services/GUID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HvsocketBody {
    /// The friendly name.
    pub name: String,
}

/// A service in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HvsocketEntry {
    /// Which.
    pub guid: String,
    /// Its vsock port; absent if it is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u32>,
    /// Its name.
    pub name: String,
    /// Whether a program of this host takes the guest's connections.
    pub listening: bool,
    /// Where it does, or would; absent if the VM has no socket for it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// Connections that it has now, either way.
    pub connections: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_what_lines_paths_and_terminals_can_have() {
        for good in [
            "x",
            "build agent",
            "web-2.0_(test)+",
            "\u{e4}\u{f6}",
            "7zip",
        ] {
            assert_eq!(name(good).as_str(), good);
        }
        assert_eq!(name(&"n".repeat(64)).as_str().len(), 64);
        for bad in [
            "",
            " ",
            " x",
            "x ",
            "a  b",
            "a/b",
            "../x",
            "-x",
            ".x",
            "a\nb",
            "a\u{1b}[2J",
            "a\u{202e}b",
            "22",
            "99999999999",
            "00000016-facb-11e6-bd58-64006a7986d3",
        ] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
        let long = "n".repeat(65).parse::<ServiceName>();
        assert_eq!(long, Err(NameError::Length(65)));
    }

    #[test]
    fn services_are_ports_or_guids() {
        assert_eq!(parse_service("22"), Ok(service_of_port(22)));
        let ssh = "00000016-FACB-11e6-bd58-64006a7986d3";
        assert_eq!(parse_service(ssh), Ok(service_of_port(22)));
        for bad in ["", "x", "-1", "+1", "4294967296", "00000016-facb"] {
            assert!(parse_service(bad).unwrap_err().contains("GUID"), "{bad}");
        }
    }

    #[test]
    fn a_name_is_one_services_and_a_service_has_one_name() {
        let (one, two) = (service_of_port(1), service_of_port(2));
        let mut registry = Registry::of(&[(one, name("a")), (two, name("b"))]).unwrap();
        assert_eq!(registry.find("a"), Some(one));
        let taken = RegistryError::Taken {
            name: name("a"),
            by: one,
        };
        assert_eq!(registry.register(two, name("a")), Err(taken));
        // The same again, and another for the same.
        registry.register(one, name("a")).unwrap();
        registry.register(one, name("c")).unwrap();
        assert_eq!((registry.find("a"), registry.find("c")), (None, Some(one)));
        registry.unregister(&one).unwrap();
        assert_eq!(registry.unregister(&one), Err(RegistryError::Unknown(one)));
        assert_eq!(registry.iter().count(), 1);
    }

    #[test]
    fn there_are_only_so_many() {
        let mut registry = Registry::default();
        for port in 0..128 {
            let name = name(&format!("n{port}"));
            registry.register(service_of_port(port), name).unwrap();
        }
        let more = registry.register(service_of_port(128), name("more"));
        assert_eq!(more, Err(RegistryError::Full));
        registry
            .register(service_of_port(7), name("other"))
            .unwrap();
        let ports = registry
            .iter()
            .map(|(service, _)| port_of(service).unwrap());
        assert!(ports.eq(0..128));
    }
}
