// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest sends to the bus, from its vCPUs to the bus thread.
//!
//! ```text
//! HvPostMessage ─► bounded queue ─► bus thread       full: the guest tries again
//! HvSignalEvent ─► eventfd of the channel ─► bus thread
//!                  by KVM itself where it can, so that the vCPU does not exit
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::RwLock;
use vmbus::bus::Bus;
use vmbus::synic::{HvStatus, VMBUS_MESSAGE_TYPE};
use vmbus::wire::Payload;
use vmm_sys_util::eventfd::EventFd;

use crate::hyperv::VmHandle;
use crate::sys;

/// Messages on their way to the bus thread. A guest that posts more is told to
/// try again, which Linux does; more would only be memory for a flood.
const MAX_MESSAGES: usize = 128;

/// A message that a guest has posted.
#[derive(Debug)]
pub struct Posted {
    /// To which connection.
    pub connection_id: u32,
    /// Its bytes.
    pub payload: Payload,
}

/// The bus thread's end.
#[derive(Debug)]
pub struct FromGuest {
    /// The messages, in the order in which they were posted.
    pub messages: Receiver<Posted>,
    /// Written when there are some.
    pub bell: Arc<EventFd>,
}

/// The vCPUs' end.
#[derive(Debug)]
pub struct BusPort {
    messages: Sender<Posted>,
    bell: Arc<EventFd>,
    signals: RwLock<HashMap<u32, Binding>>,
    congested: AtomicBool,
}

/// Eventfds of connections, open or closed: as many as there are channel numbers.
const MAX_BINDINGS: usize = 2047;

/// A connection's eventfd. It stays with the connection's number for the machine's
/// life, because KVM takes milliseconds to forget one (it waits until no vCPU looks
/// at its table), and the numbers come again: the bus takes the lowest that is free.
#[derive(Debug)]
struct Binding {
    event: Arc<EventFd>,
    /// A channel has it. If not, nobody watches the eventfd, so that it does not
    /// matter that KVM still takes the guest's signals.
    open: bool,
    /// KVM knows it.
    in_kvm: bool,
}

/// Message types that begin or end a session, and with it all that waits.
const SESSION_MESSAGES: [[u8; 4]; 2] = [14u32.to_le_bytes(), 16u32.to_le_bytes()];

impl BusPort {
    /// A port and its other end.
    pub fn new() -> io::Result<(Self, FromGuest)> {
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (sender, receiver) = bounded(MAX_MESSAGES);
        let port = Self {
            messages: sender,
            bell: Arc::clone(&bell),
            signals: RwLock::default(),
            congested: AtomicBool::new(false),
        };
        let messages = receiver;
        Ok((port, FromGuest { messages, bell }))
    }

    /// HvPostMessage.
    pub fn post(&self, connection_id: u32, message_type: u32, payload: Payload) -> HvStatus {
        if !Bus::is_message_connection(connection_id) || message_type != VMBUS_MESSAGE_TYPE {
            return HvStatus::INVALID_CONNECTION_ID;
        }
        let starts_over = SESSION_MESSAGES
            .iter()
            .any(|kind| payload.as_slice().starts_with(kind));
        if self.congested.load(Ordering::Acquire) && !starts_over {
            return HvStatus::INSUFFICIENT_BUFFERS;
        }
        let posted = Posted {
            connection_id,
            payload,
        };
        match self.messages.try_send(posted) {
            Ok(()) => {
                // A full counter is a pending wake-up already.
                let _ = self.bell.write(1);
                HvStatus::SUCCESS
            }
            Err(TrySendError::Full(_)) => HvStatus::INSUFFICIENT_BUFFERS,
            Err(TrySendError::Disconnected(_)) => HvStatus::INVALID_CONNECTION_ID,
        }
    }

    /// A guest that does not read its messages may post no more of them, but
    /// for those that start over.
    pub(crate) fn set_congested(&self, congested: bool) {
        self.congested.store(congested, Ordering::Release);
    }

    /// Wakes the bus thread if it waits for the guest to read.
    pub(crate) fn ring_if_congested(&self) {
        if self.congested.load(Ordering::Acquire) {
            let _ = self.bell.write(1);
        }
    }

    /// HvSignalEvent, when it exited.
    pub fn signal(&self, connection_id: u32, flag: u16) -> HvStatus {
        let signals = self.signals.read();
        match signals.get(&connection_id).filter(|binding| binding.open) {
            None => HvStatus::INVALID_CONNECTION_ID,
            // Each connection has the one flag that Linux uses.
            Some(_) if flag != 0 => HvStatus::INVALID_PORT_ID,
            Some(binding) => {
                let _ = binding.event.write(1);
                HvStatus::SUCCESS
            }
        }
    }

    /// A connection's eventfd, for as long as it is open. It may have been signalled
    /// already, before the connection was closed the last time.
    pub(crate) fn bind(
        &self,
        connection_id: u32,
        vm: Option<&VmHandle>,
    ) -> io::Result<Arc<EventFd>> {
        let mut signals = self.signals.write();
        let full = signals.len() >= MAX_BINDINGS;
        let binding = match signals.entry(connection_id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if full => return Err(io::ErrorKind::QuotaExceeded.into()),
            Entry::Vacant(entry) => entry.insert(Binding {
                event: Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?),
                open: false,
                in_kvm: false,
            }),
        };
        if let Some(vm) = vm.filter(|_| !binding.in_kvm) {
            match sys::bind_eventfd(vm, connection_id, &binding.event) {
                Ok(()) => binding.in_kvm = true,
                // The signal exits then, and is found above: slower, not lost.
                Err(error) => {
                    log::warn!("connection {connection_id:#x}: no eventfd in KVM: {error}");
                }
            }
        }
        binding.open = true;
        Ok(Arc::clone(&binding.event))
    }

    /// The connection is closed: signals to it have no effect.
    pub(crate) fn unbind(&self, connection_id: u32) {
        if let Some(binding) = self.signals.write().get_mut(&connection_id) {
            binding.open = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        Payload::new(&[14, 0, 0, 0]).unwrap()
    }

    #[test]
    fn only_the_buss_connections_and_messages_are_taken() {
        let (port, from_guest) = BusPort::new().unwrap();
        assert_eq!(port.post(4, 1, payload()), HvStatus::SUCCESS);
        assert_eq!(port.post(1, 1, payload()), HvStatus::SUCCESS);
        assert_eq!(port.post(2, 1, payload()), HvStatus::INVALID_CONNECTION_ID);
        assert_eq!(port.post(4, 2, payload()), HvStatus::INVALID_CONNECTION_ID);
        assert_eq!(from_guest.messages.len(), 2);
        assert_eq!(from_guest.bell.read().unwrap(), 2);
    }

    #[test]
    fn a_flood_of_messages_is_told_to_wait() {
        let (port, from_guest) = BusPort::new().unwrap();
        for _ in 0..MAX_MESSAGES {
            assert_eq!(port.post(4, 1, payload()), HvStatus::SUCCESS);
        }
        assert_eq!(port.post(4, 1, payload()), HvStatus::INSUFFICIENT_BUFFERS);
        from_guest.messages.recv().unwrap();
        assert_eq!(port.post(4, 1, payload()), HvStatus::SUCCESS);
    }

    #[test]
    fn a_congested_bus_takes_only_what_starts_over() {
        let (port, _from_guest) = BusPort::new().unwrap();
        port.set_congested(true);
        let message = |kind: u8| Payload::new(&[kind, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(port.post(4, 1, message(3)), HvStatus::INSUFFICIENT_BUFFERS);
        assert_eq!(port.post(4, 1, message(14)), HvStatus::SUCCESS);
        assert_eq!(port.post(4, 1, message(16)), HvStatus::SUCCESS);
        port.set_congested(false);
        assert_eq!(port.post(4, 1, message(3)), HvStatus::SUCCESS);
    }

    #[test]
    fn a_signal_reaches_the_channel_that_is_bound_and_only_flag_zero() {
        let (port, _from_guest) = BusPort::new().unwrap();
        let event = port.bind(0x1_0001, None).unwrap();
        assert_eq!(port.signal(0x1_0001, 0), HvStatus::SUCCESS);
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(port.signal(0x1_0001, 1), HvStatus::INVALID_PORT_ID);
        assert_eq!(port.signal(0x1_0002, 0), HvStatus::INVALID_CONNECTION_ID);
        port.unbind(0x1_0001);
        assert_eq!(port.signal(0x1_0001, 0), HvStatus::INVALID_CONNECTION_ID);
        assert!(event.read().is_err(), "nobody was signalled");
    }

    #[test]
    fn a_number_that_comes_again_has_the_eventfd_that_it_had() {
        let (port, _from_guest) = BusPort::new().unwrap();
        let first = port.bind(0x1_0001, None).unwrap();
        let other = port.bind(0x1_0002, None).unwrap();
        for _ in 0..1000 {
            port.unbind(0x1_0001);
            let again = port.bind(0x1_0001, None).unwrap();
            assert!(Arc::ptr_eq(&first, &again));
        }
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!(port.signals.read().len(), 2);
        assert_eq!(port.signal(0x1_0001, 0), HvStatus::SUCCESS);
        assert_eq!(first.read().unwrap(), 1);
    }
}
