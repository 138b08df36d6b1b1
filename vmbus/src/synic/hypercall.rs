// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the three registers of a hypercall to a checked request (protocol 1.7).
//!
//! The bus knows two calls: `HvPostMessage`, whose 256-byte input block lies in
//! guest memory, and `HvSignalEvent`, whose input fits in a register. Whatever
//! else arrives is answered with the status that the hypervisor specification
//! has for it, and the guest falls back to native ways.
//!
//! ```text
//! control  63..60 59..48    47..44 43..32    31     30..27 26..17    16   15..0
//!          zero   rep start zero   rep count nested zero   var. hdr  fast call code
//! ```

use super::HvStatus;
use crate::memory::GuestMemory;
use crate::wire::{MAX_PAYLOAD, Payload};

/// Call code of `HvPostMessage`.
pub const HV_POST_MESSAGE: u16 = 0x5c;
/// Call code of `HvSignalEvent`.
pub const HV_SIGNAL_EVENT: u16 = 0x5d;
/// The message type that VMBus puts in front of its messages.
pub const VMBUS_MESSAGE_TYPE: u32 = 1;

/// Connection ids have 24 bits; the rest of the word is reserved.
const MAX_CONNECTION_ID: u32 = 0x00ff_ffff;
/// Types with this bit set belong to the hypervisor; a guest cannot post them.
const HYPERVISOR_MESSAGE_TYPE: u32 = 0x8000_0000;
const PAGE_SIZE: u64 = 4096;

/// A call that passed every check.
// One of these lives at a time, on a stack: a box would cost more than it saves.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// The guest sends a message to the host.
    PostMessage {
        /// Where to: 24 bits, given meaning by the bus.
        connection_id: u32,
        /// The message type; the bus uses [`VMBUS_MESSAGE_TYPE`].
        message_type: u32,
        /// The message, copied out of guest memory once.
        payload: Payload,
    },
    /// The guest tells the host to look at a channel.
    SignalEvent {
        /// Which channel: the connection id of its offer.
        connection_id: u32,
        /// Linux always says 0.
        flag: u16,
    },
}

/// Decodes the hypercall whose registers are `control` (RCX), `input` (RDX) and
/// `output` (R8), or says which status the guest gets instead.
///
/// The memory of a slow call is read exactly once.
///
/// # Example
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use vmbus::synic::{Hypercall, HvStatus, decode};
///
/// let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)])?;
/// // A fast HvSignalEvent for connection 0x12.
/// let call = decode(&mem, 0x1_005d, 0x12, 0);
/// assert_eq!(call, Ok(Hypercall::SignalEvent { connection_id: 0x12, flag: 0 }));
/// // Flushing TLBs by hypercall is not offered.
/// assert_eq!(decode(&mem, 0x2, 0, 0), Err(HvStatus::INVALID_HYPERCALL_CODE));
/// # Ok::<(), vm_memory::mmap::FromRangesError>(())
/// ```
pub fn decode(
    mem: &dyn GuestMemory,
    control: u64,
    input: u64,
    _output: u64,
) -> Result<Hypercall, HvStatus> {
    let control = Control(control);
    match control.call_code() {
        HV_POST_MESSAGE => {
            control.check_simple()?;
            if control.is_fast() {
                // 16 bytes of registers cannot hold a message.
                return Err(HvStatus::INVALID_HYPERCALL_INPUT);
            }
            post_message(&read_input::<POST_MESSAGE_INPUT>(mem, input)?)
        }
        HV_SIGNAL_EVENT => {
            control.check_simple()?;
            if control.is_fast() {
                signal_event(input)
            } else {
                let block = read_input::<8>(mem, input)?;
                signal_event(u64::from_le_bytes(block))
            }
        }
        _ => Err(HvStatus::INVALID_HYPERCALL_CODE),
    }
}

/// The control word of a hypercall.
#[derive(Clone, Copy)]
struct Control(u64);

impl Control {
    /// Everything that must be zero in a call without variable header and
    /// without repetitions, including the request to reach a nested hypervisor.
    const MUST_BE_ZERO: u64 = !0x1_ffff;

    fn call_code(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    fn is_fast(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    fn check_simple(self) -> Result<(), HvStatus> {
        if self.0 & Self::MUST_BE_ZERO == 0 {
            Ok(())
        } else {
            Err(HvStatus::INVALID_HYPERCALL_INPUT)
        }
    }
}

/// Reads the `N`-byte input block at `gpa`: 8-aligned, within one page, in memory.
fn read_input<const N: usize>(mem: &dyn GuestMemory, gpa: u64) -> Result<[u8; N], HvStatus> {
    let fits = gpa % PAGE_SIZE + N as u64 <= PAGE_SIZE;
    if !gpa.is_multiple_of(8) || !fits {
        return Err(HvStatus::INVALID_ALIGNMENT);
    }
    let mut block = [0; N];
    if mem.read(gpa, &mut block) {
        Ok(block)
    } else {
        Err(HvStatus::INVALID_ALIGNMENT)
    }
}

/// Connection id, reserved, message type, payload size, payload.
const POST_MESSAGE_INPUT: usize = 16 + MAX_PAYLOAD;

fn post_message(block: &[u8; POST_MESSAGE_INPUT]) -> Result<Hypercall, HvStatus> {
    let word = |offset: usize| {
        block
            .get(offset..offset + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    let (connection_id, reserved, message_type, size) = (word(0), word(4), word(8), word(12));
    if connection_id > MAX_CONNECTION_ID {
        return Err(HvStatus::INVALID_CONNECTION_ID);
    }
    if reserved != 0 || message_type == 0 || message_type & HYPERVISOR_MESSAGE_TYPE != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let payload = usize::try_from(size)
        .ok()
        .and_then(|size| block.get(16..)?.get(..size))
        .and_then(Payload::new)
        .ok_or(HvStatus::INVALID_PARAMETER)?;
    Ok(Hypercall::PostMessage {
        connection_id,
        message_type,
        payload,
    })
}

fn signal_event(input: u64) -> Result<Hypercall, HvStatus> {
    let flag = u16::try_from(input >> 32).map_err(|_| HvStatus::INVALID_HYPERCALL_INPUT)?;
    let connection_id = u32::try_from(input & 0xffff_ffff).unwrap_or(u32::MAX);
    if connection_id > MAX_CONNECTION_ID {
        return Err(HvStatus::INVALID_CONNECTION_ID);
    }
    Ok(Hypercall::SignalEvent {
        connection_id,
        flag,
    })
}

#[cfg(test)]
mod tests;
