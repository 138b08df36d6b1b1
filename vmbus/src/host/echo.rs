// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that sends every packet back: the smallest complete example, and
//! what tests drive the bus with.

use std::time::Duration;

use super::{Channel, Device, DeviceError, Flow, Packet, SendError};
use crate::bus::OfferSpec;
use crate::ring::PacketMeta;
use crate::wire::{Guid, PacketFlags, PacketType};

/// The echo device's type. No driver knows it: `uio_hv_generic` can be bound.
pub const ECHO_TYPE: Guid = Guid::from_u128(0x7c5e_1a5d_52c6_4b0e_9d3b_0f3c_6f86_5e01);
/// The instance that [`EchoDevice::default`] has.
pub const ECHO_INSTANCE: Guid = Guid::from_u128(0x7c5e_1a5d_52c6_4b0e_9d3b_0f3c_6f86_5e02);

/// Sends every packet's payload back, with the same type and transaction id. A
/// packet that asks for a completion gets one instead, with the same payload.
///
/// When the guest does not read, the echo does not read either, and the guest
/// finds its ring full: no packet is buffered here, dropped, or overtaken.
///
/// ```
/// use vmbus::host::{Device, ECHO_TYPE, EchoDevice};
///
/// let echo = EchoDevice::default();
/// assert_eq!(echo.offer().interface_type, ECHO_TYPE);
/// assert_eq!(echo.echoed(), 0);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct EchoDevice {
    instance: Guid,
    echoed: u64,
}

impl EchoDevice {
    /// An echo device with an instance GUID of its own.
    pub const fn new(instance: Guid) -> Self {
        Self {
            instance,
            echoed: 0,
        }
    }

    /// Packets sent back so far.
    pub const fn echoed(&self) -> u64 {
        self.echoed
    }
}

impl Default for EchoDevice {
    fn default() -> Self {
        Self::new(ECHO_INSTANCE)
    }
}

impl Device for EchoDevice {
    fn offer(&self) -> OfferSpec {
        OfferSpec::message_pipe(ECHO_TYPE, self.instance)
    }

    fn opened(&mut self, _: Duration, _: &mut Channel<'_>) -> Result<(), SendError> {
        Ok(())
    }

    fn packet(
        &mut self,
        _: Duration,
        channel: &mut Channel<'_>,
        packet: &Packet<'_>,
    ) -> Result<Flow, DeviceError> {
        let wanted = packet.flags.contains(PacketFlags::COMPLETION_REQUESTED);
        let meta = PacketMeta {
            packet_type: if wanted {
                PacketType::COMPLETION
            } else {
                packet.packet_type
            },
            flags: PacketFlags::empty(),
            transaction_id: packet.transaction_id,
        };
        match channel.send(meta, &[packet.payload]) {
            Ok(()) => {
                self.echoed += 1;
                Ok(Flow::Done)
            }
            Err(SendError::Full) => Ok(Flow::Later),
            // It fitted into the guest's ring, and the other one is too small.
            Err(SendError::TooLarge | SendError::Ring(_)) => Err(DeviceError),
        }
    }
}
