// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's vCPUs reach in `vmm` without the bus: synthetic MSRs, the hypercall
//! page, crash reports, and the port to the bus thread.

use arbitrary::{Result, Unstructured};
use vm_memory::{Bytes, GuestAddress};
use vmbus::hyperv::{Partition, guest_os_name};
use vmbus::synic::HvStatus;
use vmbus::wire::Payload;
use vmbus_kvm::{BusPort, FromGuest};
use vmm::events::CrashRecord;
use vmm::memory;

use crate::step::{Step, array, blob, steps, write_blob};

const MEMORY: u64 = 2 << 20;
const VPS: u32 = 3;
/// The bytes of a message, at most, also as it is shown.
const MAX_MESSAGE: usize = 4096;
/// More messages than this wait for nobody.
const MAX_WAITING: usize = 128;

/// A vCPU does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hyperv {
    /// Reads an MSR of the range, by its low bits.
    Read(u8, u16),
    /// Writes one.
    Write(u8, u16, u64),
    /// Writes memory.
    Memory(u32, Vec<u8>),
    /// Posts a message: connection, type, bytes.
    Post(u8, u8, Vec<u8>),
    /// Signals a connection's flag.
    Signal(u8, u8),
    /// The bus thread takes what there is.
    Take,
}

impl Step for Hyperv {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        Ok(match op % 16 {
            0..3 => Self::Read(array::<1>(input)?[0], u16::from_le_bytes(array(input)?)),
            3..9 => Self::Write(
                array::<1>(input)?[0],
                u16::from_le_bytes(array(input)?),
                u64::from_le_bytes(array(input)?),
            ),
            9..11 => Self::Memory(u32::from_le_bytes(array(input)?), blob(input)?),
            11..14 => {
                let [connection, kind] = array(input)?;
                Self::Post(connection, kind, blob(input)?)
            }
            14 => {
                let [connection, flag] = array(input)?;
                Self::Signal(connection, flag)
            }
            _ => Self::Take,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Read(vp, index) => {
                out.extend([0, *vp]);
                out.extend(index.to_le_bytes());
            }
            Self::Write(vp, index, value) => {
                out.extend([3, *vp]);
                out.extend(index.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Memory(at, bytes) => {
                out.push(9);
                out.extend(at.to_le_bytes());
                write_blob(out, bytes);
            }
            Self::Post(connection, kind, bytes) => {
                out.extend([11, *connection, *kind]);
                write_blob(out, bytes);
            }
            Self::Signal(connection, flag) => out.extend([14, *connection, *flag]),
            Self::Take => out.push(15),
        }
    }
}

fn index(low: u16) -> u32 {
    0x4000_0000 + u32::from(low % 0x200)
}

/// Runs `data` against a new partition.
pub fn run(data: &[u8]) {
    let memory = memory::map(MEMORY, false).unwrap();
    let mut partition = Partition::new(VPS, 2_000_000_000);
    let (port, from_guest) = BusPort::new().unwrap();
    for step in steps(data) {
        match step {
            Hyperv::Read(vp, low) => {
                let tsc = (vp & 0x80 == 0).then_some(u64::from(low) << 40);
                let _ = partition.read(u32::from(vp % 4), index(low), tsc);
            }
            Hyperv::Write(vp, low, value) => {
                let report = partition.write(&memory, u32::from(vp % 4), index(low), value);
                let record = report.ok().flatten().map(CrashRecord::from);
                let message = record.and_then(|record| record.message);
                if let Some(text) = message {
                    assert!(text.len() <= MAX_MESSAGE);
                    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
                    assert!(!text.contains(steers), "{text:?} reaches a terminal");
                }
                let _ = (partition.hypercalls_enabled(), guest_os_name(value));
            }
            Hyperv::Memory(at, bytes) => {
                let at = u64::from(at) % MEMORY;
                let _ = memory.write_slice(&bytes, GuestAddress(at));
            }
            Hyperv::Post(connection, kind, bytes) => {
                if let Some(payload) = Payload::new(&bytes) {
                    let before = from_guest.messages.len();
                    let status = port.post(connection.into(), kind.into(), payload);
                    let taken = from_guest.messages.len() - before;
                    assert_eq!(taken == 1, status == HvStatus::SUCCESS);
                }
            }
            Hyperv::Signal(connection, flag) => {
                // Nobody has bound one.
                let status = port.signal(connection.into(), flag.into());
                assert_eq!(status, HvStatus::INVALID_CONNECTION_ID);
            }
            Hyperv::Take => take(&from_guest),
        }
        assert!(from_guest.messages.len() <= MAX_WAITING);
    }
}

fn take(from_guest: &FromGuest) {
    let _ = from_guest.bell.read();
    while from_guest.messages.try_recv().is_ok() {}
}

/// What kernels do.
pub fn seeds() -> Vec<(&'static str, Vec<Hyperv>)> {
    use Hyperv as H;
    let linux = 0x8100_0006_0100_0000;
    let post = || H::Post(4, 1, vec![14, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        (
            "start",
            vec![
                H::Write(0, 0, linux),
                H::Read(0, 2),
                H::Write(0, 1, 0x5001),
                H::Write(0, 0x21, 0x6001),
                H::Read(0, 0x20),
                H::Read(0, 0x22),
                H::Read(0, 0x23),
                H::Write(1, 0x73, 0x7001),
                H::Write(0, 0x118, 1),
                H::Write(0, 0, 0),
            ],
        ),
        (
            "crash",
            vec![
                H::Memory(0x5000, b"Kernel panic\x1b[2J\xff\n".to_vec()),
                H::Write(0, 0x100, 1),
                H::Write(0, 0x103, 0x5000),
                H::Write(0, 0x104, 4096),
                H::Write(0, 0x105, 3 << 62),
                H::Read(0, 0x105),
                H::Write(0, 0x103, u64::MAX),
                H::Write(0, 0x105, 3 << 62),
            ],
        ),
        (
            "flood",
            [
                vec![post(); 90],
                vec![H::Take, post(), H::Post(9, 1, vec![]), H::Signal(4, 0)],
            ]
            .concat(),
        ),
    ]
}
