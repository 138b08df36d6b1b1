// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Works round two faults of nested SVM in the emulation of QEMU 7.2.
//!
//! 1. After VMRUN has injected an external interrupt, the CPU's
//!    pending-exception field keeps the vector. If the CPU loop is left before
//!    the next VM exit, the vector is delivered a second time, even with
//!    interrupts off, and the guest spins on a lock that its interrupted
//!    handler holds. The store becomes a NOP: the injection itself gets the
//!    vector as an argument.
//! 2. VMRUN and #VMEXIT change the virtual-interrupt bit of the CPU's
//!    interrupt-request word without the lock under which others set bits in
//!    it, so an interrupt of the nest can be lost: a soft lockup. The two
//!    instructions become LOCK BTS and LOCK BTR of the same bit.
//!
//! A copy in the cache is changed, and only if each of the three places is
//! found exactly once; otherwise the binary is used as it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::paths::{self, Lock};
use crate::progress::say;
use crate::tools::QEMU;

const LAYER: &str = "qemu";

/// Any byte.
const ANY: Option<u8> = None;

/// The QEMU to run: a changed copy where that is possible.
pub(super) fn qemu() -> Result<PathBuf> {
    let original = QEMU.require()?;
    let about = fs::metadata(&original).context(LAYER, original.display())?;
    let time = about.modified().context(LAYER, original.display())?;
    let key = format!("{} {} {time:?}", original.display(), about.len());

    let _lock = Lock::take("qemu")?;
    let dir = paths::cache("qemu")?;
    let (copy, key_file) = (dir.join("qemu-system-x86_64"), dir.join("key"));
    let known = fs::read_to_string(&key_file).unwrap_or_default();
    if known != key {
        let mut bytes = fs::read(&original).context(LAYER, original.display())?;
        let _ = fs::remove_file(&copy);
        match patch(&mut bytes) {
            Ok(()) => write_program(&copy, &bytes)?,
            Err(why) => say(format_args!(
                "{} is used unpatched ({why}); it may lock up now and then",
                original.display()
            )),
        }
        fs::write(&key_file, key).context(LAYER, key_file.display())?;
    }
    Ok(if copy.exists() { copy } else { original })
}

fn write_program(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).context(LAYER, path.display())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context(LAYER, path.display())
}

/// Changes the three places, or nothing.
fn patch(binary: &mut [u8]) -> std::result::Result<(), String> {
    // mov %esi,exception_index(%rbx); movl $0,…; movq $-1,…; testb …
    let injection =
        pattern("89 b3 ? ? ? ? c7 83 ? ? ? ? 00 00 00 00 48 c7 83 ? ? ? ? ff ff ff ff f6 05");
    // orl $0x100,interrupt_request(%rbx); testb $0x20,…(%rbx)
    let set = pattern("81 8b ? ? ? ? 00 01 00 00 f6 83 ? ? ? ? 20");
    let injection = once(binary, &injection, "injection")?;
    let set = once(binary, &set, "set")?;
    let field: Vec<u8> = binary.get(set + 2..set + 6).unwrap_or_default().to_vec();
    // andl $~0x100,interrupt_request(%rbx); movl $0,int_ctl…
    let mut clear = pattern("81 a3 ? ? ? ? ff fe ff ff c7 83 ? ? ? ? 00 00 00 00");
    for (byte, known) in clear.iter_mut().skip(2).zip(&field) {
        *byte = Some(*known);
    }
    let clear = once(binary, &clear, "clear")?;

    overwrite(binary, injection, &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00]);
    // LOCK BTS/BTR $8, and a NOP to fill up
    overwrite(
        binary,
        set,
        &[&[0xf0, 0x0f, 0xba, 0xab], field.as_slice(), &[8, 0x90]].concat(),
    );
    overwrite(
        binary,
        clear,
        &[&[0xf0, 0x0f, 0xba, 0xb3], field.as_slice(), &[8, 0x90]].concat(),
    );
    Ok(())
}

fn overwrite(binary: &mut [u8], at: usize, with: &[u8]) {
    for (byte, new) in binary.iter_mut().skip(at).zip(with) {
        *byte = *new;
    }
}

fn pattern(text: &str) -> Vec<Option<u8>> {
    text.split(' ')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect()
}

/// Where the pattern is, if it is there once.
fn once(binary: &[u8], pattern: &[Option<u8>], what: &str) -> std::result::Result<usize, String> {
    let first = pattern.first().copied().flatten();
    let mut found = Vec::new();
    for (at, byte) in binary.iter().enumerate() {
        if Some(*byte) == first && matches(binary.get(at..).unwrap_or_default(), pattern) {
            found.push(at);
        }
    }
    match found.as_slice() {
        [at] => Ok(*at),
        _ => Err(format!(
            "the place of \"{what}\" was found {} times, not once",
            found.len()
        )),
    }
}

fn matches(bytes: &[u8], pattern: &[Option<u8>]) -> bool {
    bytes.len() >= pattern.len()
        && pattern
            .iter()
            .zip(bytes)
            .all(|(wanted, byte)| *wanted == ANY || *wanted == Some(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INJECTION: &str =
        "89 b3 11 22 33 44 c7 83 1 1 1 1 00 00 00 00 48 c7 83 1 1 1 1 ff ff ff ff f6 05";
    const SET: &str = "81 8b aa bb cc dd 00 01 00 00 f6 83 1 1 1 1 20";
    const CLEAR: &str = "81 a3 aa bb cc dd ff fe ff ff c7 83 1 1 1 1 00 00 00 00";

    fn binary(parts: &[&str]) -> Vec<u8> {
        let text = parts.join(" 00 00 ");
        text.split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect()
    }

    #[test]
    fn the_three_places_are_changed_and_nothing_else() {
        let original = binary(&["90", INJECTION, SET, CLEAR, "90"]);
        let mut changed = original.clone();
        patch(&mut changed).unwrap();
        let expected = binary(&[
            "90",
            &INJECTION.replace("89 b3 11 22 33 44", "66 0f 1f 44 00 00"),
            &SET.replace(
                "81 8b aa bb cc dd 00 01 00 00",
                "f0 0f ba ab aa bb cc dd 08 90",
            ),
            &CLEAR.replace(
                "81 a3 aa bb cc dd ff fe ff ff",
                "f0 0f ba b3 aa bb cc dd 08 90",
            ),
            "90",
        ]);
        assert_eq!(changed, expected);
    }

    #[test]
    fn a_place_found_twice_or_never_changes_nothing() {
        for parts in [
            vec![INJECTION, SET, CLEAR, SET],
            vec![INJECTION, SET],
            vec![
                INJECTION,
                SET,
                "81 a3 aa bb cc ee ff fe ff ff c7 83 1 1 1 1 00 00 00 00",
            ],
            vec![],
        ] {
            let original = if parts.is_empty() {
                Vec::new()
            } else {
                binary(&parts)
            };
            let mut changed = original.clone();
            patch(&mut changed).unwrap_err();
            assert_eq!(changed, original);
        }
    }
}
