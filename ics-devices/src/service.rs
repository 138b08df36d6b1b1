// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The services by name, and the GUIDs by which a guest knows them
//! (protocol 6.1).

use std::fmt;
use std::str::FromStr;

use vmbus::bus::OfferSpec;
use vmbus::wire::Guid;

use crate::wire::MessageType;

/// An integration service.
///
/// ```
/// use ics_devices::Service;
/// let heartbeat: Service = "heartbeat".parse()?;
/// assert_eq!(
///     heartbeat.interface_type().to_string(),
///     "57164f39-9115-4e78-ab55-382f3bd5422d",
/// );
/// # Ok::<(), ics_devices::UnknownService>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Is the guest alive?
    Heartbeat,
    /// Power off, reboot, hibernate.
    Shutdown,
    /// The host's clock for the guest.
    TimeSync,
    /// Key-value data exchange.
    Kvp,
    /// Backup: freeze and thaw file systems.
    Vss,
    /// Guest services: files into the guest.
    Fcopy,
}

/// A name that no service has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no service '{name}': there are heartbeat, shutdown, timesync, kvp, vss, fcopy")]
pub struct UnknownService {
    /// The name.
    pub name: String,
}

impl Service {
    /// All of them, in the order in which they are listed everywhere.
    pub const ALL: [Self; 6] = [
        Self::Heartbeat,
        Self::Shutdown,
        Self::TimeSync,
        Self::Kvp,
        Self::Vss,
        Self::Fcopy,
    ];

    /// The name in lists, commands and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Shutdown => "shutdown",
            Self::TimeSync => "timesync",
            Self::Kvp => "kvp",
            Self::Vss => "vss",
            Self::Fcopy => "fcopy",
        }
    }

    /// Which driver takes the channel.
    pub const fn interface_type(self) -> Guid {
        Guid::from_u128(match self {
            Self::Heartbeat => 0x57164f39_9115_4e78_ab55_382f3bd5422d,
            Self::Shutdown => 0x0e0b6031_5213_4934_818b_38d90ced39db,
            Self::TimeSync => 0x9527e630_d0ae_497b_adce_e80ab0175caf,
            Self::Kvp => 0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6,
            Self::Vss => 0x35fa2e29_ea23_4236_96ae_3a6ebacba440,
            Self::Fcopy => 0x34d14be3_dee4_41c8_9ae7_6b174977c192,
        })
    }

    /// The instance that Hyper-V offers. The guest's file-copy daemon has its
    /// own compiled in.
    pub const fn instance(self) -> Guid {
        Guid::from_u128(match self {
            Self::Heartbeat => 0xfd149e91_82e0_4a7d_afa6_2a4166cbd7c0,
            Self::Shutdown => 0xb6650ff7_33bc_4840_8048_e0676786f393,
            Self::TimeSync => 0x2dd1ce17_079e_403c_b352_a1921ee207ee,
            Self::Kvp => 0x242ff919_07db_4180_9c2e_b86cb68c8c55,
            Self::Vss => 0x2450ee40_33bf_4fbd_892e_9fb06e9214cf,
            Self::Fcopy => 0xeb765408_105f_49b6_b4aa_c123b64d17d4,
        })
    }

    /// The type of its messages.
    pub const fn message_type(self) -> MessageType {
        match self {
            Self::Heartbeat => MessageType::HEARTBEAT,
            Self::Shutdown => MessageType::SHUTDOWN,
            Self::TimeSync => MessageType::TIME_SYNC,
            Self::Kvp => MessageType::KVP,
            Self::Vss => MessageType::VSS,
            Self::Fcopy => MessageType::FCOPY,
        }
    }

    /// What the guest is offered.
    pub fn offer(self) -> OfferSpec {
        OfferSpec::message_pipe(self.interface_type(), self.instance())
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Service {
    type Err = UnknownService;

    fn from_str(name: &str) -> Result<Self, UnknownService> {
        let mut all = Self::ALL.into_iter();
        all.find(|service| service.name() == name)
            .ok_or_else(|| UnknownService { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appendix A of the protocol: type and instance as bytes on the wire.
    const WIRE: [(Service, u128, u128); 6] = [
        (
            Service::Shutdown,
            0x3160_0b0e_1352_3449_818b_38d9_0ced_39db,
            0xf70f_65b6_bc33_4048_8048_e067_6786_f393,
        ),
        (
            Service::TimeSync,
            0x30e6_2795_aed0_7b49_adce_e80a_b017_5caf,
            0x17ce_d12d_9e07_3c40_b352_a192_1ee2_07ee,
        ),
        (
            Service::Heartbeat,
            0x394f_1657_1591_784e_ab55_382f_3bd5_422d,
            0x919e_14fd_e082_7d4a_afa6_2a41_66cb_d7c0,
        ),
        (
            Service::Kvp,
            0xe7f4_a0a9_455a_964d_b827_8a84_1e8c_03e6,
            0x19f9_2f24_db07_8041_9c2e_b86c_b68c_8c55,
        ),
        (
            Service::Vss,
            0x292e_fa35_23ea_3642_96ae_3a6e_bacb_a440,
            0x40ee_5024_bf33_bd4f_892e_9fb0_6e92_14cf,
        ),
        (
            Service::Fcopy,
            0xe34b_d134_e4de_c841_9ae7_6b17_4977_c192,
            0x0854_76eb_5f10_b649_b4aa_c123_b64d_17d4,
        ),
    ];

    #[test]
    fn guids_are_those_of_the_protocols_appendix() {
        for (service, interface_type, instance) in WIRE {
            let wire = service.interface_type().to_bytes();
            assert_eq!(wire, interface_type.to_be_bytes(), "{service}");
            let wire = service.instance().to_bytes();
            assert_eq!(wire, instance.to_be_bytes(), "{service}");
        }
    }

    #[test]
    fn every_service_is_found_by_its_name() {
        for service in Service::ALL {
            assert_eq!(service.name().parse(), Ok(service));
        }
        let error = "vsock".parse::<Service>().unwrap_err();
        assert!(error.to_string().contains("'vsock'"));
    }

    #[test]
    fn an_offer_is_a_message_pipe() {
        let offer = Service::Kvp.offer();
        assert_eq!(offer.interface_type, Service::Kvp.interface_type());
        assert_eq!(offer.instance, Service::Kvp.instance());
        assert_eq!(offer.flags.bits(), 0x11);
        assert_eq!(offer.user_defined[..8], [4, 0, 0, 0, 0, 0, 0, 0]);
    }
}
