// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sources of packages, for a program that is built otherwise than the
//! distribution builds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources::Kind;
use super::{LAYER, Release};
use crate::error::{Context, Result, failed, output_of};
use crate::paths;

/// The sources of one release. They have lists of their own, which a machine
/// that only wants kernels never fetches.
#[derive(Debug)]
pub struct SourceRelease(Release);

impl SourceRelease {
    /// A release by its code name, such as `trixie`. Nothing is fetched yet.
    pub fn open(name: &str) -> Result<Self> {
        let dir = format!("apt/{name}-source");
        Release::open_kind(name, &dir, Kind::Source).map(Self)
    }

    /// Fetches the release's lists.
    pub fn refresh(&self) -> Result<()> {
        self.0.refresh()
    }

    /// Downloads a package's original source and unpacks it, without the
    /// directory that its archive has all files in.
    ///
    /// The distribution's own changes are about its own way of building. The
    /// archive's hash is in the signed lists, so the package's description, a
    /// file of its own, is not needed either.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let archive = self.download(package)?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&archive).arg("-C").arg(into);
        output_of(LAYER, tar.args(["--strip-components=1", "--no-same-owner"]))?;
        fs::remove_file(&archive).context(LAYER, archive.display())
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        let dir = paths::unfinished(&self.0.dir.join("download"))?;
        let mut apt = self.0.apt("apt-get");
        apt.args(["-q", "source", "--download-only", "--tar-only", package]);
        output_of(LAYER, apt.current_dir(&dir))?;
        let file = fs::read_dir(&dir)
            .context(LAYER, dir.display())?
            .filter_map(std::result::Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().contains(".orig.tar."));
        file.ok_or_else(|| failed(LAYER, format!("{package}: no source was downloaded")))
    }
}
