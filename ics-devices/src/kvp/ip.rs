// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's network addresses (protocol 6.6, IP information).
//!
//! ```text
//!    0 operation u8 | 1 pool u8 | 2 adapter [128 u16]
//!  258 family u8 (1 IPv4, 2 IPv6) | 259 DHCP u8
//!  260 addresses [1024 u16] | 2308 subnets [1024] | 4356 gateways [512] | 5380 DNS [1024]
//! 7428 end
//! ```
//!
//! Lists are texts with `;` between their parts. Reading takes the adapter's
//! MAC address, writing the instance GUID of a Hyper-V NIC.

use std::net::IpAddr;

use super::wire::{get_text, put_text};
use crate::protocol::BadAnswer;

const GET_IP_INFO: u8 = 4;
const SET_IP_INFO: u8 = 5;

const ADAPTER: usize = 2;
const FAMILY: usize = 258;
const DHCP: usize = 259;
const ADDRESSES: usize = 260;
const SUBNETS: usize = 2308;
const GATEWAYS: usize = 4356;
const DNS: usize = 5380;
/// Bytes of the body.
pub const IP_BODY: usize = 7428;

/// Which network adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter(String);

/// A text that names no adapter, or addresses that do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpError {
    /// Neither a MAC address nor a GUID.
    #[error("an adapter is named by its MAC address, as 52:54:00:12:34:56, or by its {{GUID}}")]
    Adapter,
    /// More than a field of the message holds.
    #[error("these are more addresses than the message has room for")]
    TooMany,
    /// Without an address and without DHCP.
    #[error("an address is needed, or DHCP")]
    NoAddress,
    /// An impossible prefix length.
    #[error("the prefix length of {0} is at most {1}")]
    Prefix(IpAddr, u8),
}

impl Adapter {
    /// A MAC address, or a GUID with or without braces.
    pub fn new(text: &str) -> Result<Self, IpError> {
        let hex = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parts: Vec<&str> = text.split([':', '-']).collect();
        if parts.len() == 6 && parts.iter().all(|part| hex(part, 2)) {
            // The guest compares it as it is.
            return Ok(Self(parts.join(":").to_ascii_uppercase()));
        }
        let bare = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
        let parts: Vec<&str> = bare.unwrap_or(text).split('-').collect();
        let lengths = [8, 4, 4, 4, 12];
        let fits = parts.iter().zip(lengths).all(|(part, len)| hex(part, len));
        if parts.len() == lengths.len() && fits {
            return Ok(Self(format!(
                "{{{}}}",
                parts.join("-").to_ascii_lowercase()
            )));
        }
        Err(IpError::Adapter)
    }

    /// As it is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An address and its subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpAddress {
    /// As the guest writes it.
    pub address: String,
    /// The length of its prefix, if the guest tells it.
    pub prefix: Option<u8>,
}

/// What the guest tells of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpInfo {
    /// Its addresses.
    pub addresses: Vec<IpAddress>,
    /// Its gateways.
    pub gateways: Vec<String>,
    /// The name servers.
    pub dns: Vec<String>,
    /// Whether it asks a DHCP server.
    pub dhcp: bool,
    /// It has IPv4.
    pub ipv4: bool,
    /// It has IPv6.
    pub ipv6: bool,
}

/// What an adapter is to be set to. Checked when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    addresses: Vec<(IpAddr, u8)>,
    gateways: Vec<IpAddr>,
    dns: Vec<IpAddr>,
    dhcp: bool,
}

impl IpConfig {
    /// Checks that it makes sense and fits.
    pub fn new(
        addresses: Vec<(IpAddr, u8)>,
        gateways: Vec<IpAddr>,
        dns: Vec<IpAddr>,
        dhcp: bool,
    ) -> Result<Self, IpError> {
        if addresses.is_empty() && !dhcp {
            return Err(IpError::NoAddress);
        }
        for (address, prefix) in &addresses {
            let most = if address.is_ipv4() { 32 } else { 128 };
            if *prefix > most {
                return Err(IpError::Prefix(*address, most));
            }
        }
        let config = Self {
            addresses,
            gateways,
            dns,
            dhcp,
        };
        // The guest's own fields are as many bytes as ours are units.
        let [addresses, subnets, gateways, dns] = config.texts().map(|text| text.len());
        if addresses.max(subnets).max(dns) >= 1024 || gateways >= 512 {
            return Err(IpError::TooMany);
        }
        Ok(config)
    }

    fn texts(&self) -> [String; 4] {
        let list = |addresses: &[IpAddr]| {
            let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            texts.join(";")
        };
        let (addresses, subnets): (Vec<IpAddr>, Vec<String>) = self
            .addresses
            .iter()
            .map(|(address, prefix)| (*address, subnet(*address, *prefix)))
            .unzip();
        [
            list(&addresses),
            subnets.join(";"),
            list(&self.gateways),
            list(&self.dns),
        ]
    }

    fn family(&self) -> u8 {
        let of = |ipv4: bool| {
            self.addresses
                .iter()
                .any(|(address, _)| address.is_ipv4() == ipv4)
        };
        u8::from(of(true)) | u8::from(of(false)) << 1
    }
}

/// A mask for IPv4, a length for IPv6: what the guest's own answers have.
fn subnet(address: IpAddr, prefix: u8) -> String {
    if address.is_ipv6() {
        return format!("/{prefix}");
    }
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    std::net::Ipv4Addr::from(mask).to_string()
}

/// A request for an adapter's addresses.
pub fn emit_get_ip(adapter: &Adapter, body: &mut Vec<u8>) {
    let start = body.len();
    body.extend_from_slice(&[GET_IP_INFO, 0]);
    put_text(body, adapter.as_str(), FAMILY - ADAPTER);
    body.resize(start + IP_BODY, 0);
}

/// A request to set an adapter's addresses.
pub fn emit_set_ip(adapter: &Adapter, config: &IpConfig, body: &mut Vec<u8>) {
    let [addresses, subnets, gateways, dns] = config.texts();
    body.extend_from_slice(&[SET_IP_INFO, 0]);
    put_text(body, adapter.as_str(), FAMILY - ADAPTER);
    body.extend_from_slice(&[config.family(), u8::from(config.dhcp)]);
    put_text(body, &addresses, SUBNETS - ADDRESSES);
    put_text(body, &subnets, GATEWAYS - SUBNETS);
    put_text(body, &gateways, DNS - GATEWAYS);
    put_text(body, &dns, IP_BODY - DNS);
}

/// What the guest tells of an adapter.
pub fn parse_ip(body: &[u8]) -> Result<IpInfo, BadAnswer> {
    let list = |from: usize, to: usize| -> Result<Vec<String>, BadAnswer> {
        let text = get_text(body.get(from..to).ok_or(BadAnswer)?)?;
        let parts = text.split(';').map(str::trim);
        Ok(parts
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect())
    };
    let byte = |at: usize| body.get(at).copied().ok_or(BadAnswer);
    let family = byte(FAMILY)?;
    let mut subnets = list(SUBNETS, GATEWAYS)?.into_iter();
    let addresses: Vec<IpAddress> = list(ADDRESSES, SUBNETS)?
        .into_iter()
        .map(|address| IpAddress {
            address,
            prefix: subnets.next().as_deref().and_then(prefix),
        })
        .collect();
    let has = |colon: bool| {
        addresses
            .iter()
            .any(|address| address.address.contains(':') == colon)
    };
    Ok(IpInfo {
        ipv4: family & 1 != 0 || has(false),
        ipv6: family & 2 != 0 || has(true),
        addresses,
        gateways: list(GATEWAYS, DNS)?,
        dns: list(DNS, IP_BODY)?,
        dhcp: byte(DHCP)? != 0,
    })
}

/// `255.255.255.0`, `/64` or `64` as a length.
fn prefix(subnet: &str) -> Option<u8> {
    if let Ok(mask) = subnet.parse::<std::net::Ipv4Addr>() {
        let mask = u32::from(mask);
        let ones = mask.leading_ones();
        // A mask with holes has no length.
        return u8::try_from(ones)
            .ok()
            .filter(|_| mask.count_ones() == ones);
    }
    let length = subnet.trim_start_matches('/').parse().ok()?;
    (length <= 128).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> Adapter {
        Adapter::new("52:54:00:ab:cd:ef").unwrap()
    }

    #[test]
    fn an_adapter_is_a_mac_or_a_guid() {
        assert_eq!(mac().as_str(), "52:54:00:AB:CD:EF");
        assert_eq!(Adapter::new("52-54-00-AB-CD-EF"), Ok(mac()));
        let guid = "{eb765408-105f-49b6-b4aa-c123b64d17d4}";
        assert_eq!(Adapter::new(guid).unwrap().as_str(), guid);
        assert_eq!(
            Adapter::new(&guid[1..37].to_uppercase()).unwrap().as_str(),
            guid
        );
        for bad in [
            "",
            "eth0",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:eg",
            "{}",
            "é:b",
        ] {
            assert_eq!(Adapter::new(bad), Err(IpError::Adapter), "{bad}");
        }
    }

    #[test]
    fn a_request_for_addresses_has_room_for_the_answer() {
        let mut body = Vec::new();
        emit_get_ip(&mac(), &mut body);
        assert_eq!(body.len(), 7428);
        assert_eq!(body[..8], [4, 0, b'5', 0, b'2', 0, b':', 0]);
        assert!(body[2 + 2 * 17..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_set_is_read_back_the_same() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let config = IpConfig::new(
            vec![(ip("10.0.0.2"), 24), (ip("fd00::2"), 64)],
            vec![ip("10.0.0.1")],
            vec![ip("10.0.0.53"), ip("fd00::53")],
            false,
        )
        .unwrap();
        let mut body = Vec::new();
        emit_set_ip(&mac(), &config, &mut body);
        assert_eq!((body.len(), body[0], body[258], body[259]), (7428, 5, 3, 0));
        let subnets = get_text(&body[SUBNETS..GATEWAYS]).unwrap();
        assert_eq!(subnets, "255.255.255.0;/64");
        let info = parse_ip(&body).unwrap();
        let address = |text: &str, length| IpAddress {
            address: text.into(),
            prefix: Some(length),
        };
        assert_eq!(
            info,
            IpInfo {
                addresses: vec![address("10.0.0.2", 24), address("fd00::2", 64)],
                gateways: vec!["10.0.0.1".into()],
                dns: vec!["10.0.0.53".into(), "fd00::53".into()],
                dhcp: false,
                ipv4: true,
                ipv6: true,
            }
        );
    }

    #[test]
    fn what_makes_no_sense_is_not_sent() {
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        let new = |addresses, dhcp| IpConfig::new(addresses, vec![], vec![], dhcp);
        assert_eq!(new(vec![], false), Err(IpError::NoAddress));
        assert!(new(vec![], true).is_ok());
        assert_eq!(new(vec![(ip, 33)], false), Err(IpError::Prefix(ip, 32)));
        assert_eq!(new(vec![(ip, 8); 200], false), Err(IpError::TooMany));
    }

    #[test]
    fn masks_with_holes_and_short_answers_are_no_reason_to_fail() {
        assert_eq!(prefix("255.0.255.0"), None);
        assert_eq!(prefix("0.0.0.0"), Some(0));
        assert_eq!(prefix("/129"), None);
        assert_eq!(prefix("64"), Some(64));
        assert_eq!(parse_ip(&[0; IP_BODY]), Ok(IpInfo::default()));
        for len in [0, 1, 259, 260, 7427] {
            assert_eq!(parse_ip(&vec![0; len]), Err(BadAnswer), "{len}");
        }
    }
}
