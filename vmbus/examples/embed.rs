// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A complete embedding without a hypervisor: what a VMM does with the guest's
//! exits, and a few exits as a guest would cause them.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmbus::bus::{Action, BusConfig};
use vmbus::host::{EchoDevice, Host};
use vmbus::synic::{
    HvStatus, Hypercall, SoftSynic, SynicAction, SynicError, VMBUS_MESSAGE_TYPE, decode, msr,
};
use vmbus::wire::{Describe, HostMessage, ProtocolVersion, VpIndex};

/// What the VMM keeps. With several threads, the SynIC goes behind a lock and
/// the host to the thread that runs the event loop.
struct Vmm {
    memory: Arc<GuestMemoryMmap>,
    synic: SoftSynic,
    host: Host,
    started: Instant,
}

impl Vmm {
    fn new(vps: u32) -> Result<Self, Box<dyn Error>> {
        let ranges = [(GuestAddress(0), 64 << 20)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges)?);
        let max_version = ProtocolVersion::V5_3;
        let mut host = Host::new(memory.clone(), BusConfig { vps, max_version });
        host.offer(Duration::ZERO, Box::new(EchoDevice::default()))?;
        Ok(Self {
            synic: SoftSynic::new(vps),
            host,
            memory,
            started: Instant::now(),
        })
    }

    /// The guest read an MSR. `None` becomes #GP, or goes to whoever else has MSRs.
    fn rdmsr(&self, vp: VpIndex, index: u32) -> Option<u64> {
        self.synic.read_msr(vp, index)
    }

    /// The guest wrote an MSR. False becomes #GP, as above.
    fn wrmsr(&mut self, vp: VpIndex, index: u32, value: u64) -> bool {
        let written = self.synic.write_msr(&*self.memory, vp, index, value);
        // An EOM may have made room for messages that were put off.
        self.perform();
        written.is_ok()
    }

    /// The guest made a hypercall with these in RCX, RDX and R8; the result is for RAX.
    fn hypercall(&mut self, rcx: u64, rdx: u64, r8: u64) -> u64 {
        let now = self.started.elapsed();
        let status = match decode(&*self.memory, rcx, rdx, r8) {
            Ok(Hypercall::PostMessage {
                connection_id: id,
                message_type: VMBUS_MESSAGE_TYPE,
                payload,
            }) => self.host.handle_message(now, id, payload.as_slice()),
            Ok(Hypercall::SignalEvent {
                connection_id: id,
                flag,
            }) => self.host.handle_signal(now, id, flag),
            // A message, but none of the bus.
            Ok(Hypercall::PostMessage { .. }) => HvStatus::INVALID_PARAMETER,
            Err(status) => status,
        };
        self.perform();
        status.to_rax()
    }

    /// To be called when `next_deadline` has come.
    fn timer(&mut self) {
        self.host.handle_timeout(self.started.elapsed());
        self.perform();
    }

    /// Does everything that the bus and the SynIC want done.
    fn perform(&mut self) {
        let memory = &*self.memory;
        while let Some(action) = self.host.poll_action() {
            let done = match action {
                Action::DiscardMessages => {
                    self.synic.discard_messages();
                    Ok(())
                }
                Action::PostMessage { vp, sint, message } => {
                    let (kind, payload) = (VMBUS_MESSAGE_TYPE, message.emit());
                    self.synic.post_message(memory, vp, sint, kind, payload)
                }
                Action::SignalEvent { vp, sint, flag } => {
                    self.synic.signal_event(memory, vp, sint, flag)
                }
                // A VMM with eventfds binds and unbinds them when a channel opens
                // and closes; one that has none, and no sockets, does nothing.
                _ => Ok(()),
            };
            if done == Err(SynicError::QueueFull) {
                self.host.defer(action);
                break;
            }
        }
        while let Some(SynicAction::Interrupt { vp, vector, .. }) = self.synic.poll_action() {
            // Here the hypervisor would be told to inject it.
            println!("interrupt with vector {vector:#x} for {vp}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut vmm = Vmm::new(1)?;
    let vp = VpIndex(0);
    // From here on, a guest: its SynIC pages are at 0x8000 and 0x9000.
    for (index, value) in [
        (msr::SIMP, 0x8001),
        (msr::SIEFP, 0x9001),
        (msr::SCONTROL, 1),
    ] {
        assert!(vmm.wrmsr(vp, index, value));
    }
    assert!(vmm.wrmsr(vp, msr::SINT0 + 2, 0xf3));
    assert_eq!(vmm.rdmsr(vp, msr::SINT0 + 2), Some(0xf3));
    // INITIATE_CONTACT for version 5.3 on connection 4, then REQUESTOFFERS.
    let contact: &[u32] = &[4, 0, 1, 40, 14, 0, 0x0005_0003, 0, 2, 0, 0, 0, 0, 0];
    for block in [contact, &[4, 0, 1, 8, 3, 0]] {
        let block: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
        vmm.memory.write_slice(&block, GuestAddress(0x7000))?;
        assert_eq!(vmm.hypercall(0x5c, 0x7000, 0), HvStatus::SUCCESS.to_rax());
        // What is in the message slot; writing 0 to its type frees it.
        while vmm.memory.read_obj::<u32>(GuestAddress(0x8200))? != 0 {
            let mut payload = [0; 240];
            vmm.memory.read_slice(&mut payload, GuestAddress(0x8210))?;
            println!("{}", HostMessage::parse(&payload)?.name());
            vmm.memory.write_obj(0u32, GuestAddress(0x8200))?;
            assert!(vmm.wrmsr(vp, msr::EOM, 0));
        }
    }
    vmm.timer();
    Ok(())
}

#[test]
fn the_embedding_works() {
    main().unwrap();
}
