// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ELF vmlinux inside a bzImage.
//!
//! The boot protocol (2.08 and later) says where the compressed payload is:
//! `payload_offset` at 0x248, counted from the protected-mode code, which
//! starts after `setup_sects` + 1 sectors, and `payload_length` at 0x24c. All
//! formats but gzip carry the unpacked size as four more bytes at the end;
//! gzip ends with just that number anyway.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::elf::is_elf64;
use crate::error::{Context, Result, failed};
use crate::tools::{LZ4, Tool, XZ, ZSTD};

const LAYER: &str = "bzImage";

const GZIP: Tool = Tool {
    name: "gzip",
    package: "gzip",
    why: "to unpack a kernel",
};

/// How a payload is packed: how it starts, and what unpacks it.
#[derive(Clone, Copy, Debug)]
struct Packer {
    magic: &'static [u8],
    tool: Tool,
    args: &'static [&'static str],
    /// Whether the size follows the packed data.
    trailer: bool,
}

const PACKERS: [Packer; 4] = [
    Packer {
        magic: b"\xfd7zXZ\0",
        tool: XZ,
        args: &["-dc", "--single-stream"],
        trailer: true,
    },
    Packer {
        magic: b"\x28\xb5\x2f\xfd",
        tool: ZSTD,
        args: &["-dcq"],
        trailer: true,
    },
    Packer {
        magic: b"\x1f\x8b",
        tool: GZIP,
        args: &["-dc"],
        trailer: false,
    },
    Packer {
        magic: b"\x02\x21\x4c\x18",
        tool: LZ4,
        args: &["-dc"],
        trailer: true,
    },
];

/// Unpacks the vmlinux of a bzImage.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let packed = payload(image).ok_or_else(|| {
        failed(
            LAYER,
            "no payload: not a bzImage of boot protocol 2.08 or later",
        )
    })?;
    let packer = PACKERS
        .into_iter()
        .find(|packer| packed.starts_with(packer.magic))
        .ok_or_else(|| {
            failed(
                LAYER,
                format!("packed in an unknown way: {:02x?}", packed.get(..8)),
            )
        })?;
    let end = packed.len() - if packer.trailer { 4 } else { 0 };
    let unpacked = filter(
        packer.tool,
        packer.args,
        packed.get(..end).unwrap_or_default(),
    )?;
    if is_elf64(&unpacked) {
        Ok(unpacked)
    } else {
        Err(failed(LAYER, "the payload is not a 64-bit ELF file"))
    }
}

/// The packed kernel, with the trailing size if its format has one.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let version = number(0x206)? & 0xffff;
    if image.get(0x202..0x206)? != b"HdrS" || version < 0x208 {
        return None;
    }
    let sectors = match image.get(0x1f1)? {
        0 => 4, // as the boot protocol has it
        sectors => usize::from(*sectors),
    };
    let start = ((sectors + 1) * 512).checked_add(number(0x248)?)?;
    let payload = image.get(start..start.checked_add(number(0x24c)?)?)?;
    (payload.len() > 8).then_some(payload)
}

/// Pipes data through a program.
pub fn filter(tool: Tool, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool.require()?)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(LAYER, tool.name)?;
    let mut stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // If it ends early, its status says so.
            let _ = stdin.as_mut().map(|stdin| stdin.write_all(input));
        });
        child.wait_with_output()
    });
    let output = output.context(LAYER, tool.name)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(LAYER, format!("{}: {}", tool.name, output.status)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        image[0x248] = 16;
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(&[0xcc; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(b"after");
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        assert_eq!(payload(&image(b"0123456789")), Some(&b"0123456789"[..]));
    }

    #[test]
    fn a_payload_beyond_the_end_is_none() {
        let mut image = image(b"0123456789");
        image[0x24f] = 0x7f;
        assert_eq!(payload(&image), None);
    }

    #[test]
    fn other_files_have_none() {
        assert_eq!(payload(b"\x7fELF"), None);
        let mut old = image(b"0123456789");
        old[0x206] = 0x07;
        assert_eq!(payload(&old), None);
    }

    #[test]
    fn each_trailer_is_cut_and_the_elf_file_comes_out() {
        let elf = [b"\x7fELF\x02\x01".as_slice(), &[7; 500]].concat();
        let packed = filter(XZ, &["-c", "--check=crc32"], &elf).unwrap();
        let with_size = [packed.as_slice(), &[0xfa, 1, 0, 0]].concat();
        assert_eq!(vmlinux(&image(&with_size)).unwrap(), elf);
        let packed = filter(GZIP, &["-c"], &elf).unwrap();
        assert_eq!(vmlinux(&image(&packed)).unwrap(), elf);
    }

    #[test]
    fn a_payload_that_is_no_kernel_is_refused() {
        let packed = filter(GZIP, &["-c"], b"some text, not a kernel").unwrap();
        assert!(vmlinux(&image(&packed)).is_err());
        assert!(vmlinux(&image(b"not packed at all")).is_err());
    }
}
