// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits that are ours, with what `kvm-ioctls` leaves out of them.
//!
//! | Exit | Ask | Then |
//! |---|---|---|
//! | `KVM_EXIT_HYPERV` | [`hyperv`] | [`Hyperv::set_synic`](crate::Hyperv::set_synic), or [`Hyperv::hypercall`](crate::Hyperv::hypercall) and [`set_hypercall_result`] |
//! | `KVM_EXIT_X86_RDMSR` | | [`Hyperv::read_msr`](crate::Hyperv::read_msr), [`set_msr_result`] |
//! | `KVM_EXIT_X86_WRMSR` | | [`Hyperv::write_msr`](crate::Hyperv::write_msr), the exit's `error` |
//! | `KVM_EXIT_IO` out, [`HYPERCALL_PORT`](vmbus::hyperv::HYPERCALL_PORT) | [`Hyperv::is_hypercall`](crate::Hyperv::is_hypercall) | registers RCX, RDX and R8 to [`Hyperv::hypercall`](crate::Hyperv::hypercall), the result into RAX; KVM skips the OUT |
//! | `KVM_EXIT_IOAPIC_EOI`, others | | not ours |

use kvm_bindings::{KVM_EXIT_X86_RDMSR, kvm_run};

pub use crate::sys::{HypervExit, hyperv};

/// Sets what the guest gets in RAX from the hypercall that it is out for.
pub fn set_hypercall_result(run: &mut kvm_run, result: u64) {
    if matches!(hyperv(run), Some(HypervExit::Hypercall { .. })) {
        // A store to a field of a `Copy` union member, whose variant was just checked.
        run.__bindgen_anon_1.hyperv.u.hcall.result = result;
    }
}

/// Ends an MSR read that went to user space: with a value, or with #GP.
pub fn set_msr_result(run: &mut kvm_run, value: Option<u64>) {
    if run.exit_reason == KVM_EXIT_X86_RDMSR {
        // Stores to `Copy` members of the union whose variant was just checked.
        run.__bindgen_anon_1.msr.error = u8::from(value.is_none());
        run.__bindgen_anon_1.msr.data = value.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use kvm_bindings::{KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC};

    #[test]
    fn a_hypercalls_registers_come_out_and_its_result_goes_in() {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_HYPERV,
            ..Default::default()
        };
        run.__bindgen_anon_1.hyperv.type_ = KVM_EXIT_HYPERV_HCALL;
        run.__bindgen_anon_1.hyperv.u.hcall.input = 0x5c;
        run.__bindgen_anon_1.hyperv.u.hcall.params = [0x1000, 0];
        let call = HypervExit::Hypercall {
            input: 0x5c,
            params: [0x1000, 0],
        };
        assert_eq!(hyperv(&run), Some(call));
        set_hypercall_result(&mut run, 3);
        assert_eq!(sys::hypercall_result(&run), Some(3));
        run.__bindgen_anon_1.hyperv.type_ = KVM_EXIT_HYPERV_SYNIC;
        assert_eq!(sys::hypercall_result(&run), None);
        set_hypercall_result(&mut run, 9);
        run.__bindgen_anon_1.hyperv.type_ = KVM_EXIT_HYPERV_HCALL;
        assert_eq!(sys::hypercall_result(&run), Some(3), "left alone");
    }

    #[test]
    fn another_exit_is_left_alone() {
        let mut run = kvm_run::default();
        assert_eq!(hyperv(&run), None);
        set_hypercall_result(&mut run, 1);
        set_msr_result(&mut run, Some(1));
        assert_eq!(sys::msr_result(&run), None);
        run.exit_reason = KVM_EXIT_X86_RDMSR;
        set_msr_result(&mut run, Some(7));
        assert_eq!(sys::msr_result(&run), Some((0, 7)));
        set_msr_result(&mut run, None);
        assert_eq!(sys::msr_result(&run), Some((1, 0)));
    }
}
