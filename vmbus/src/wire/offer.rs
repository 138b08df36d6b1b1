// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! OFFERCHANNEL: what the host tells the guest about a channel (protocol 4.5).

use super::{Guid, Relid};

/// Bytes that a device may put into its offer.
pub const USER_DEFINED_SIZE: usize = 120;
/// Pipe mode of a byte stream, such as a socket.
pub const PIPE_MODE_BYTE: u32 = 0;
/// Pipe mode of messages, such as an integration service's.
pub const PIPE_MODE_MESSAGE: u32 = 4;

bitflags::bitflags! {
    /// Flags of a channel.
    ///
    /// The bits 0x2 and 0x4 are absent on purpose: kernels from 7.x on refuse
    /// offers that have them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ChannelFlags: u16 {
        /// The guest should make a device of it.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// The channel is a pipe; the user-defined bytes begin with its mode.
        const NAMED_PIPE_MODE = 0x0010;
        /// Offered by the guest to itself.
        const LOOPBACK_OFFER = 0x0100;
        /// Offered by the parent partition.
        const PARENT_OFFER = 0x0200;
        /// The guest should signal through the monitor page.
        const REQUEST_MONITORED_NOTIFICATION = 0x0400;
        /// A Hyper-V socket.
        const TLNPI_PROVIDER_OFFER = 0x2000;
        /// Others are kept as they are.
        const _ = !0;
    }
}

/// An offer with the numbers that the bus assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which driver the channel is for.
    pub interface_type: Guid,
    /// Which of several devices of the type; unique among all primary channels.
    pub instance: Guid,
    /// Flags.
    pub flags: ChannelFlags,
    /// MMIO space that the device wants.
    pub mmio_megabytes: u16,
    /// The device's own bytes.
    pub user_defined: [u8; USER_DEFINED_SIZE],
    /// 0 for a primary channel.
    pub sub_channel_index: u16,
    /// The channel's number.
    pub relid: Relid,
    /// The monitor bit, if one is allocated.
    pub monitor_id: Option<u8>,
    /// Signals come by hypercall only, without the interrupt page.
    pub dedicated_interrupt: bool,
    /// What the guest names when it signals this channel.
    pub connection_id: u32,
}
