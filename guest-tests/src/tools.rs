// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of the system that the harness needs: found, installed, or named.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{HarnessError, Result, output_of};
use crate::progress::{say, step};

const LAYER: &str = "tools";

/// A program, the package that has it, and why it is needed.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// The program's name.
    pub name: &'static str,
    /// The distribution's package.
    pub package: &'static str,
    /// What for.
    pub why: &'static str,
}

/// Emulates the machine in which VMs can run.
pub const QEMU: Tool = Tool {
    name: "qemu-system-x86_64",
    package: "qemu-system-x86",
    why: "to emulate a machine in which VMs can run",
};

/// Unpacks packages and some modules.
pub const XZ: Tool = Tool {
    name: "xz",
    package: "xz-utils",
    why: "to unpack kernels and modules",
};

/// Unpacks some kernels.
pub const ZSTD: Tool = Tool {
    name: "zstd",
    package: "zstd",
    why: "to unpack kernels and modules",
};

/// Unpacks some kernels.
pub const LZ4: Tool = Tool {
    name: "lz4",
    package: "lz4",
    why: "to unpack a kernel",
};

/// Installs the distribution into a directory.
pub const DEBOOTSTRAP: Tool = Tool {
    name: "debootstrap",
    package: "debootstrap",
    why: "to make a guest with the distribution's own init",
};

/// Asks the control API, as the documentation has it.
pub const CURL: Tool = Tool {
    name: "curl",
    package: "curl",
    why: "to try the documentation's examples",
};

/// A shell in a guest.
pub const SSH: Tool = Tool {
    name: "ssh",
    package: "openssh-client",
    why: "to try vmmctl ssh",
};

/// Talks to Hyper-V sockets, as the documentation has it.
pub const SOCAT: Tool = Tool {
    name: "socat",
    package: "socat",
    why: "to try the documentation's examples",
};

/// Runs schemathesis.
pub const PYTHON: Tool = Tool {
    name: "python3",
    package: "python3-venv",
    why: "to run schemathesis against the control API",
};

/// Counts instructions.
pub const VALGRIND: Tool = Tool {
    name: "valgrind",
    package: "valgrind",
    why: "to count instructions",
};

/// Compiles libFuzzer.
pub const CXX: Tool = Tool {
    name: "c++",
    package: "g++",
    why: "to build the fuzz targets",
};

/// Builds the second nest's emulator.
pub const MAKE: Tool = Tool {
    name: "make",
    package: "make",
    why: "to build Bochs",
};

/// Makes the disc that the second nest is booted from.
pub const XORRISO: Tool = Tool {
    name: "xorriso",
    package: "xorriso",
    why: "to make the Intel nest's disc",
};

impl Tool {
    /// The program's path; installs its package if that is missing and allowed.
    pub fn require(self) -> Result<PathBuf> {
        if let Some(path) = find(self.name) {
            return Ok(path);
        }
        if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
            return Err(self.missing());
        }
        step(
            &format!("installing {} ({})", self.package, self.why),
            || self.install(),
        )?;
        find(self.name).ok_or_else(|| self.missing())
    }

    fn install(self) -> Result<()> {
        let install = || {
            let mut command = Command::new("apt-get");
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(["-o", "DPkg::Lock::Timeout=300", self.package]);
            command
        };
        if output_of(LAYER, &mut install()).is_ok() {
            return Ok(());
        }
        say("the package lists seem old; refreshing them (apt-get update)");
        output_of(LAYER, Command::new("apt-get").args(["update", "-q"]))?;
        output_of(LAYER, &mut install()).map(drop)
    }

    fn missing(self) -> HarnessError {
        HarnessError::MissingTool {
            tool: self.name.to_owned(),
            why: self.why.to_owned(),
            package: self.package.to_owned(),
        }
    }
}

/// Looks a program up as a shell does, and where root's programs are.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_the_command_that_installs_it() {
        let text = QEMU.missing().to_string();
        assert!(text.contains("apt-get install -y --no-install-recommends qemu-system-x86"));
        assert!(!text.contains('\n'));
    }

    #[test]
    fn tools_are_found_where_shells_find_them() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
