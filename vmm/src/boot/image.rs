// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel images: what kind a file is, whether it can be booted, and loading it.
//!
//! Headers are read and checked here, before `linux-loader` copies anything,
//! so that every bad file ends in an error that says what is wrong with it.

use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{self, BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, ReadVolatile};

use crate::memory::{self, GuestMemory};

/// Where the setup header stands in a bzImage.
const SETUP_HEADER: u64 = 0x1F1;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first version with 64-bit entry information (`xloadflags`).
const MIN_VERSION: u16 = 0x020C;
/// `xloadflags`: the image has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// `loadflags`: the protected-mode code is loaded high.
const LOADED_HIGH: u8 = 1;
/// Offset of the 64-bit entry point in the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// Boot loader id "not assigned".
const UNDEFINED_LOADER: u8 = 0xFF;
/// What x86 kernels take when their image does not tell (`COMMAND_LINE_SIZE` less the NUL).
const DEFAULT_CMDLINE_MAX: usize = 2047;
/// As long as any kernel says it takes; more would run into the next boot structure.
const CMDLINE_MAX: usize = 0xFFFF;
/// Program headers of a kernel; a real one has about five.
const MAX_PROGRAM_HEADERS: u16 = 64;
const ELF_HEADER: usize = 64;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// A kernel's notes are some hundred bytes.
const MAX_NOTES: u64 = 64 << 10;

/// A kernel file whose header has been checked.
#[derive(Debug)]
pub struct Image {
    kind: Kind,
    file_size: u64,
}

#[derive(Debug)]
enum Kind {
    BzImage(Box<setup_header>),
    Elf {
        /// Bytes of memory up to the end of the last segment.
        end: u64,
        entry: u64,
    },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Loaded {
    /// The 64-bit entry point.
    pub entry: u64,
    /// First byte that the kernel does not need while it starts.
    pub end: u64,
    /// The setup header to be handed to the kernel.
    pub header: setup_header,
    /// Highest address that the initramfs may use.
    pub initramfs_max: u64,
    /// Longest command line, without the NUL.
    pub cmdline_max: usize,
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reading failed.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Neither of the two formats.
    #[error("not a kernel: neither a bzImage nor an ELF vmlinux")]
    NotAKernel,
    /// The file ends before what its header announces.
    #[error("truncated: {have} bytes, its header speaks of {need}")]
    Truncated {
        /// The file's size.
        have: u64,
        /// The least that it should be.
        need: u64,
    },
    /// An image too old or for other machines.
    #[error("a kernel that cannot be booted here: {0}")]
    Unsupported(&'static str),
    /// An ELF file with nonsense in its headers.
    #[error("a broken ELF file: {0}")]
    BadElf(&'static str),
    /// It does not fit into the guest's memory.
    #[error(
        "needs memory up to {need:#x} to start, and the guest has {have:#x}: give it more --memory"
    )]
    TooLittleMemory {
        /// End of what the kernel needs.
        need: u64,
        /// End of the guest's low memory.
        have: u64,
    },
    /// `linux-loader` found something else.
    #[error("cannot be loaded: {0}")]
    Load(#[from] loader::Error),
}

impl Image {
    /// Reads and checks the header.
    pub fn parse<F: Read + Seek>(file: &mut F) -> Result<Self, ImageError> {
        let file_size = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut start = Vec::new();
        file.take(SETUP_HEADER).read_to_end(&mut start)?;
        let kind = if start.starts_with(b"\x7FELF") {
            parse_elf(file, file_size)?
        } else {
            parse_bzimage(file, file_size)?
        };
        Ok(Self { kind, file_size })
    }

    /// Copies the kernel to where it belongs, in a guest whose low memory ends at `low_end`.
    pub fn load<F: Read + ReadVolatile + Seek>(
        &self,
        file: &mut F,
        guest: &GuestMemory,
        low_end: u64,
    ) -> Result<Loaded, ImageError> {
        let fits = |need: u64| {
            if need > low_end {
                Err(ImageError::TooLittleMemory {
                    need,
                    have: low_end,
                })
            } else {
                Ok(())
            }
        };
        match &self.kind {
            Kind::BzImage(header) => {
                // At the preferred address the kernel need not move itself.
                let start = header.pref_address;
                let end = start
                    .checked_add(u64::from(header.init_size).max(self.file_size))
                    .ok_or(ImageError::Unsupported("its load address overflows"))?;
                fits(end)?;
                BzImage::load(guest, Some(GuestAddress(start)), file, None)?;
                let mut header = **header;
                header.type_of_loader = UNDEFINED_LOADER;
                Ok(Loaded {
                    entry: start.saturating_add(ENTRY_64),
                    end,
                    initramfs_max: u64::from(header.initrd_addr_max),
                    cmdline_max: usize::try_from(header.cmdline_size)
                        .unwrap_or(CMDLINE_MAX)
                        .min(CMDLINE_MAX),
                    header,
                })
            }
            Kind::Elf { end, entry } => {
                fits(*end)?;
                Elf::load(
                    guest,
                    None,
                    file,
                    Some(GuestAddress(memory::HIGH_RAM_START)),
                )?;
                Ok(Loaded {
                    entry: *entry,
                    end: *end,
                    initramfs_max: u64::from(u32::MAX),
                    cmdline_max: DEFAULT_CMDLINE_MAX,
                    header: setup_header {
                        boot_flag: 0xAA55,
                        header: HEADER_MAGIC,
                        type_of_loader: UNDEFINED_LOADER,
                        kernel_alignment: 0x0100_0000,
                        ..setup_header::default()
                    },
                })
            }
        }
    }
}

fn parse_bzimage<F: Read + Seek>(file: &mut F, file_size: u64) -> Result<Kind, ImageError> {
    let mut header = setup_header::default();
    let header_len = u64::try_from(header.as_slice().len()).unwrap_or(u64::MAX);
    if file_size < SETUP_HEADER + header_len {
        return Err(ImageError::NotAKernel);
    }
    file.seek(SeekFrom::Start(SETUP_HEADER))?;
    file.read_exact(header.as_mut_slice())?;
    if header.header != HEADER_MAGIC || header.boot_flag != 0xAA55 {
        return Err(ImageError::NotAKernel);
    }
    if header.version < MIN_VERSION || header.loadflags & LOADED_HIGH == 0 {
        return Err(ImageError::Unsupported(
            "its boot protocol is older than 2.12",
        ));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(ImageError::Unsupported("it has no 64-bit entry point"));
    }
    if header.pref_address < memory::HIGH_RAM_START {
        return Err(ImageError::Unsupported("it wants to be loaded below 1 MiB"));
    }
    let setup_sectors = u64::from(if header.setup_sects == 0 {
        4
    } else {
        header.setup_sects
    });
    // syssize counts 16-byte units of protected-mode code.
    let need = (setup_sectors + 1) * 512 + u64::from(header.syssize) * 16;
    if header.syssize == 0 || file_size < need {
        return Err(ImageError::Truncated {
            have: file_size,
            need,
        });
    }
    Ok(Kind::BzImage(Box::new(header)))
}

fn parse_elf<F: Read + Seek>(file: &mut F, file_size: u64) -> Result<Kind, ImageError> {
    let truncated = |need: u64| {
        if file_size < need {
            Err(ImageError::Truncated {
                have: file_size,
                need,
            })
        } else {
            Ok(())
        }
    };
    truncated(64)?;
    file.rewind()?;
    let mut header = [0u8; ELF_HEADER];
    file.read_exact(&mut header)?;
    if array_at::<3>(&header, 4) != [2, 1, 1] {
        return Err(ImageError::Unsupported(
            "it is not a 64-bit little-endian ELF",
        ));
    }
    if u16_at(&header, 18) != EM_X86_64 {
        return Err(ImageError::Unsupported(
            "it is for another machine than x86-64",
        ));
    }
    let entry = u64_at(&header, 24);
    let phoff = u64_at(&header, 32);
    let (phentsize, phnum) = (u16_at(&header, 54), u16_at(&header, 56));
    if phentsize != 56 {
        return Err(ImageError::BadElf("program headers of an odd size"));
    }
    if phnum == 0 || phnum > MAX_PROGRAM_HEADERS {
        return Err(ImageError::BadElf("no program headers, or far too many"));
    }
    let headers_end = phoff
        .checked_add(u64::from(phnum) * 56)
        .ok_or(ImageError::BadElf(
            "its program headers are beyond all files",
        ))?;
    truncated(headers_end)?;

    file.seek(SeekFrom::Start(phoff))?;
    let (mut end, mut entered) = (0u64, false);
    for _ in 0..phnum {
        let mut ph = [0u8; 56];
        file.read_exact(&mut ph)?;
        match u32_at(&ph, 0) {
            PT_LOAD => {}
            // The loader walks notes in small steps: a huge one would take ages.
            PT_NOTE if u64_at(&ph, 32) > MAX_NOTES => {
                return Err(ImageError::BadElf("more notes than a kernel has"));
            }
            _ => continue,
        }
        let (offset, paddr) = (u64_at(&ph, 8), u64_at(&ph, 24));
        let (filesz, memsz) = (u64_at(&ph, 32), u64_at(&ph, 40));
        if filesz > memsz {
            return Err(ImageError::BadElf(
                "a segment larger in the file than in memory",
            ));
        }
        truncated(
            offset
                .checked_add(filesz)
                .ok_or(ImageError::BadElf("a segment beyond all files"))?,
        )?;
        let segment_end = paddr
            .checked_add(memsz)
            .ok_or(ImageError::BadElf("a segment beyond all memory"))?;
        if paddr < memory::HIGH_RAM_START && memsz > 0 {
            return Err(ImageError::BadElf("a segment below 1 MiB"));
        }
        entered |= (paddr..segment_end).contains(&entry);
        end = end.max(segment_end);
    }
    if !entered {
        return Err(ImageError::BadElf(
            "its entry point is in none of its segments",
        ));
    }
    Ok(Kind::Elf { end, entry })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes of a header; zeros where the header is shorter, which callers rule out.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests;
