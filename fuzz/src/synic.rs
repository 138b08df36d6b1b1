// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSRs, hypercalls, messages and events against both kinds of SynIC.

use arbitrary::{Result, Unstructured};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmbus::synic::{
    ExternalSynic, MAX_QUEUED_MESSAGES, SoftSynic, SynicAction, SynicRegs, decode, msr,
};
use vmbus::wire::{Payload, Sint, VpIndex};

use crate::step::{Step, array, blob, steps, write_blob};

/// Something that the guest or the host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Synic {
    /// WRMSR: processor, index above 0x40000080, value.
    WriteMsr(u8, u8, u64),
    /// RDMSR: processor, index above 0x40000080.
    ReadMsr(u8, u8),
    /// A hypercall: control and input.
    Hypercall(u64, u64),
    /// The guest writes bytes: page, 8-byte word.
    Write(u8, u16, Vec<u8>),
    /// The host sends a message: processor, SINT, type, bytes.
    Post(u8, u8, u8, Vec<u8>),
    /// The host signals: processor, SINT, flag.
    Signal(u8, u8, u16),
    /// The registers as a hypervisor reports them: processor, SIMP and SIEFP pages.
    Regs(u8, u8, u8),
    /// EOM as a hypervisor reports it.
    Eom(u8),
    /// The host forgets all messages.
    Discard,
    /// The machine is reset.
    Reset,
}

const PAGES: u64 = 16;

impl Step for Synic {
    fn read(input: &mut Unstructured<'_>) -> Result<Self> {
        let [op] = array(input)?;
        let mut one = || array::<1>(input).map(|[a]| a);
        Ok(match op % 10 {
            0 => Self::WriteMsr(one()?, one()?, u64::from_le_bytes(array(input)?)),
            1 => Self::ReadMsr(one()?, one()?),
            2 => {
                let control = u64::from_le_bytes(array(input)?);
                Self::Hypercall(control, u64::from_le_bytes(array(input)?))
            }
            3 => Self::Write(one()?, u16::from_le_bytes(array(input)?), blob(input)?),
            4 => Self::Post(one()?, one()?, one()?, blob(input)?),
            5 => Self::Signal(one()?, one()?, u16::from_le_bytes(array(input)?)),
            6 => Self::Regs(one()?, one()?, one()?),
            7 => Self::Eom(one()?),
            8 => Self::Discard,
            _ => Self::Reset,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::WriteMsr(vp, index, value) => {
                out.extend([0, *vp, *index]);
                out.extend(value.to_le_bytes());
            }
            Self::ReadMsr(vp, index) => out.extend([1, *vp, *index]),
            Self::Hypercall(control, input) => {
                out.push(2);
                out.extend(control.to_le_bytes());
                out.extend(input.to_le_bytes());
            }
            Self::Write(page, word, bytes) => {
                out.extend([3, *page]);
                out.extend(word.to_le_bytes());
                write_blob(out, bytes);
            }
            Self::Post(vp, sint, kind, bytes) => {
                out.extend([4, *vp, *sint, *kind]);
                write_blob(out, bytes);
            }
            Self::Signal(vp, sint, flag) => {
                out.extend([5, *vp, *sint]);
                out.extend(flag.to_le_bytes());
            }
            Self::Regs(vp, simp, siefp) => out.extend([6, *vp, *simp, *siefp]),
            Self::Eom(vp) => out.extend([7, *vp]),
            Self::Discard => out.push(8),
            Self::Reset => out.push(9),
        }
    }
}

struct Target {
    memory: GuestMemoryMmap,
    soft: SoftSynic,
    external: ExternalSynic,
}

/// Runs the steps in `data`.
pub fn run(data: &[u8]) {
    let size = usize::try_from(PAGES * 4096).expect("small");
    let mut target = Target {
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("memory"),
        soft: SoftSynic::new(2),
        external: ExternalSynic::new(2),
    };
    for step in steps(data) {
        target.perform(step);
        target.drain();
    }
}

impl Target {
    fn perform(&mut self, step: Synic) {
        let memory = &self.memory;
        let vp = |n: u8| VpIndex(u32::from(n % 3));
        let sint = |n: u8| Sint::new(n % 16).expect("below 16");
        match step {
            Synic::WriteMsr(n, index, value) => {
                let index = msr::SCONTROL + u32::from(index % 40);
                let written = self.soft.write_msr(memory, vp(n), index, value);
                assert!(written.is_err() || SoftSynic::owns_msr(index));
                let kept = !matches!(index, msr::SVERSION | msr::EOM);
                if written.is_ok() && kept {
                    assert_eq!(self.soft.read_msr(vp(n), index), Some(value));
                }
            }
            Synic::ReadMsr(n, index) => {
                let index = msr::SCONTROL + u32::from(index % 40);
                let read = self.soft.read_msr(vp(n), index);
                assert_eq!(read.is_some(), SoftSynic::owns_msr(index) && n % 3 < 2);
            }
            Synic::Hypercall(control, input) => {
                let _ = decode(memory, control, input, 0);
            }
            Synic::Write(page, word, mut bytes) => {
                let offset = u64::from(word % 512) * 8;
                bytes.truncate(usize::try_from(4096 - offset).expect("small"));
                let at = GuestAddress(u64::from(page) % PAGES * 4096 + offset);
                memory.write_slice(&bytes, at).expect("in memory");
            }
            Synic::Post(n, s, kind, bytes) => {
                let Some(payload) = Payload::new(&bytes) else {
                    return;
                };
                let (vp, sint, kind) = (vp(n), sint(s), u32::from(kind));
                let a = self.soft.post_message(memory, vp, sint, kind, payload);
                let b = self.external.post_message(memory, vp, sint, kind, payload);
                // Type 0 is no message, whoever it is for.
                assert!(kind == 0 || (a.is_ok() && b.is_ok()) == (vp.0 < 2));
            }
            Synic::Signal(n, s, flag) => {
                let signalled = self.soft.signal_event(memory, vp(n), sint(s), flag);
                assert_eq!(signalled.is_ok(), vp(n).0 < 2 && flag < 2048);
                let _ = self.external.signal_event(memory, vp(n), sint(s), flag);
            }
            Synic::Regs(n, simp, siefp) => {
                let regs = SynicRegs {
                    scontrol: 1,
                    simp: u64::from(simp) << 12 | 1,
                    siefp: u64::from(siefp) << 12 | 1,
                };
                let _ = self.external.set_regs(memory, vp(n), regs);
            }
            Synic::Eom(n) => drop(self.external.end_of_message(memory, vp(n))),
            Synic::Discard => {
                self.soft.discard_messages();
                self.external.discard_messages();
            }
            Synic::Reset => {
                self.soft.reset();
                self.external.reset();
            }
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.soft.poll_action() {
            let SynicAction::Interrupt { vp, vector, .. } = action;
            assert!(vp.0 < 2 && vector >= 16);
        }
        while let Some(raise) = self.external.poll_action() {
            assert!(raise.vp.0 < 2);
        }
        for vp in 0..2 {
            assert!(self.soft.queued_messages(VpIndex(vp)) <= MAX_QUEUED_MESSAGES);
        }
    }
}

/// Accesses worth starting from.
pub fn seeds() -> Vec<(&'static str, Vec<Synic>)> {
    use Synic as S;
    let on = |vp| {
        vec![
            S::WriteMsr(vp, 3, 0x8001),
            S::WriteMsr(vp, 2, 0x9001),
            S::WriteMsr(vp, 0x12, 0xf3),
            S::WriteMsr(vp, 0, 1),
            S::Regs(vp, 10, 11),
        ]
    };
    let with = |mut steps: Vec<S>, more: &[S]| {
        steps.extend_from_slice(more);
        steps
    };
    let hello = S::Post(0, 2, 1, vec![4, 0, 0, 0, 0, 0, 0, 0]);
    let free = S::Write(8, 64, vec![0; 4]);
    let mut block = vec![4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0];
    block.extend([3, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        (
            "message",
            with(on(0), &[hello.clone(), free.clone(), S::WriteMsr(0, 4, 0)]),
        ),
        (
            "queue",
            with(
                on(0),
                &[
                    hello.clone(),
                    hello.clone(),
                    hello.clone(),
                    free.clone(),
                    S::WriteMsr(0, 4, 0),
                    S::Eom(0),
                    S::Discard,
                ],
            ),
        ),
        (
            "early",
            with(vec![hello.clone(), S::Signal(0, 2, 9)], &on(0)),
        ),
        (
            "events",
            with(
                on(1),
                &[
                    S::Signal(1, 2, 1),
                    S::Signal(1, 2, 2047),
                    S::Signal(1, 2, 2048),
                ],
            ),
        ),
        (
            "masked",
            with(
                on(0),
                &[
                    S::WriteMsr(0, 0x12, 0x1_00f3),
                    hello,
                    S::WriteMsr(0, 0x12, 0xf3),
                ],
            ),
        ),
        (
            "bad-pages",
            vec![
                S::WriteMsr(0, 3, u64::MAX),
                S::WriteMsr(0, 2, 1 << 40 | 1),
                S::WriteMsr(0, 0, 1),
                S::WriteMsr(0, 0x12, 0xf3),
                S::Signal(0, 2, 1),
            ],
        ),
        (
            "post",
            vec![
                S::Write(1, 0, block),
                S::Hypercall(0x5c, 0x1000),
                S::Hypercall(0x5c, 0x1008),
            ],
        ),
        (
            "signal",
            vec![
                S::Hypercall(0x1_005d, 0x10001),
                S::Hypercall(0x5d, 0x2ff8),
                S::Hypercall(2, 0),
            ],
        ),
        ("read", (0..40).map(|n| S::ReadMsr(0, n)).collect()),
        ("reset", with(on(0), &[S::Reset, S::ReadMsr(0, 3)])),
    ]
}
