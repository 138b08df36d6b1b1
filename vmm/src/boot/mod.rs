// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loading a Linux kernel and entering it by the 64-bit boot protocol.
//!
//! Guest-physical memory as the boot CPU finds it:
//!
//! ```text
//! 0x0500  GDT: the flat code and data segments that the protocol names
//! 0x7000  boot_params ("zero page")
//! 0x9000  page tables: identity map of the first 4 GiB
//! 0x20000 command line
//! 0xE0000 ACPI tables
//! load    kernel: an ELF where its headers say, a bzImage at its preferred address
//! …       initramfs, as high below the gap as the kernel allows
//! ```
//!
//! The protocol is described in the kernel's `Documentation/arch/x86/boot.rst`.

pub mod image;
pub mod params;
pub mod tables;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::boot_params;
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use crate::memory::{self, GuestMemory};
pub use image::{Image, ImageError};

const ZERO_PAGE: u64 = 0x7000;
const CMDLINE: u64 = 0x2_0000;
const PAGE: u64 = 4096;

/// Everything needed to load a guest, again and again: files are opened once,
/// so a reset finds what the start found even if a path has been replaced.
#[derive(Debug)]
pub struct BootSource {
    kernel: File,
    kernel_path: PathBuf,
    initramfs: Option<(File, PathBuf)>,
    cmdline: String,
}

/// How the boot CPU has to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First instruction, in 64-bit mode.
    pub rip: u64,
    /// Address of `boot_params`, expected in RSI.
    pub rsi: u64,
}

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file of the user's could not be opened.
    #[error("{flag}: cannot open {path}: {source}")]
    Open {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel file is no kernel, or none that can be booted.
    #[error("--kernel: {path}: {source}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The initramfs could not be read into guest memory.
    #[error("--initramfs: cannot read {path}: {reason}")]
    ReadInitramfs {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Kernel and initramfs together need more RAM than there is.
    #[error(
        "--initramfs: {path} ({size} bytes) does not fit below {limit:#x} behind the kernel, \
         which ends at {kernel_end:#x}: give the guest more --memory"
    )]
    InitramfsTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// End of the memory that may hold it.
        limit: u64,
        /// First byte behind the kernel.
        kernel_end: u64,
    },
    /// Longer than the kernel's own limit.
    #[error("--cmdline: {length} bytes, with what --ssh-key adds; this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// What the kernel takes.
        max: usize,
    },
    /// A NUL would end the command line early.
    #[error("--cmdline: holds a NUL byte")]
    CmdlineNul,
    /// Boot data did not fit into guest memory.
    #[error("boot data does not fit into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

impl BootSource {
    /// Opens the files. Directories, missing and unreadable files are told apart here.
    pub fn open(kernel: &Path, initramfs: Option<&Path>, cmdline: &str) -> Result<Self, BootError> {
        if cmdline.contains('\0') {
            return Err(BootError::CmdlineNul);
        }
        Ok(Self {
            kernel: open("--kernel", kernel)?,
            kernel_path: kernel.to_owned(),
            initramfs: initramfs
                .map(|path| Ok::<_, BootError>((open("--initramfs", path)?, path.to_owned())))
                .transpose()?,
            cmdline: cmdline.to_owned(),
        })
    }

    /// Loads kernel, initramfs, command line, boot parameters and CPU tables.
    pub fn load(&self, memory: &GuestMemory, size: u64, rsdp: u64) -> Result<Entry, BootError> {
        let kernel = |source| BootError::Kernel {
            path: self.kernel_path.clone(),
            source,
        };
        let mut file = &self.kernel;
        let image = Image::parse(&mut file).map_err(kernel)?;
        let loaded = image
            .load(&mut file, memory, size.min(memory::GAP_START))
            .map_err(kernel)?;

        if self.cmdline.len() > loaded.cmdline_max {
            return Err(BootError::CmdlineTooLong {
                length: self.cmdline.len(),
                max: loaded.cmdline_max,
            });
        }
        memory.write_slice(self.cmdline.as_bytes(), GuestAddress(CMDLINE))?;
        memory.write_obj(
            0u8,
            GuestAddress(CMDLINE.saturating_add(self.cmdline.len().try_into().unwrap_or(u64::MAX))),
        )?;

        let mut zero_page = boot_params {
            hdr: loaded.header,
            acpi_rsdp_addr: rsdp,
            ..boot_params::default()
        };
        params::set_cmdline(&mut zero_page, CMDLINE);
        params::set_e820(&mut zero_page, size);
        if let Some((file, path)) = &self.initramfs {
            let (start, len) = load_initramfs(file, path, memory, &loaded, size)?;
            params::set_initramfs(&mut zero_page, start, len);
        }
        memory.write_obj(zero_page, GuestAddress(ZERO_PAGE))?;
        tables::write(memory)?;
        Ok(Entry {
            rip: loaded.entry,
            rsi: ZERO_PAGE,
        })
    }
}

fn open(flag: &'static str, path: &Path) -> Result<File, BootError> {
    let fail = |source| BootError::Open {
        flag,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

/// Reads the initramfs to the end of the memory the kernel lets it have.
fn load_initramfs(
    file: &File,
    path: &Path,
    memory: &GuestMemory,
    kernel: &image::Loaded,
    memory_size: u64,
) -> Result<(u64, u64), BootError> {
    let fail = |reason: String| BootError::ReadInitramfs {
        path: path.to_owned(),
        reason,
    };
    let size = file.metadata().map_err(|e| fail(e.to_string()))?.len();
    if size == 0 {
        return Err(fail("the file is empty".into()));
    }
    let limit = memory_size
        .min(memory::GAP_START)
        .min(kernel.initramfs_max.saturating_add(1));
    let start = limit
        .checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel.end)
        .ok_or_else(|| BootError::InitramfsTooLarge {
            path: path.to_owned(),
            size,
            limit,
            kernel_end: kernel.end,
        })?;
    let mut from = file;
    io::Seek::rewind(&mut from).map_err(|e| fail(e.to_string()))?;
    let len = usize::try_from(size).map_err(|e| fail(e.to_string()))?;
    read_exact(&mut from, memory, start, len).map_err(|e| fail(e.to_string()))?;
    Ok((start, size))
}

/// Reads `len` bytes of a file to `start`; a file that shrank is an error.
fn read_exact<F: ReadVolatile>(
    from: &mut F,
    memory: &GuestMemory,
    start: u64,
    len: usize,
) -> Result<(), vm_memory::GuestMemoryError> {
    memory.read_exact_volatile_from(GuestAddress(start), from, len)
}
