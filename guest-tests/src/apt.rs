// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packages of any of the distribution's releases, by its own package client.
//!
//! Each release has a private `apt` state in the cache: its own sources,
//! lists and no installed packages, so the machine's own `apt` never notices.
//! Signatures are checked as always. Packages are unpacked, never installed.
//! [`SourceRelease`] is the same for the sources that packages are built from.

mod source;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result, failed, output_of};
use crate::paths;
use crate::progress::step;
pub use source::SourceRelease;
use sources::{Kind, Mirrors};

const LAYER: &str = "apt";

const KEYRING: &str = "usr/share/keyrings/debian-archive-keyring.gpg";

/// Releases whose signatures an old keyring is likely to know, for fetching a
/// newer keyring.
const KEYRING_SOURCES: [&str; 2] = ["trixie", "bookworm"];

/// One release of the distribution.
#[derive(Debug)]
pub struct Release {
    name: String,
    dir: PathBuf,
    kind: Kind,
}

impl Release {
    /// A release by its code name, such as `bookworm`. Nothing is fetched yet.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_kind(name, &format!("apt/{name}"), Kind::Binary)
    }

    fn open_kind(name: &str, dir: &str, kind: Kind) -> Result<Self> {
        let dir = paths::cache(dir)?;
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).context(LAYER, sub.display())?;
        }
        Ok(Self {
            name: name.to_owned(),
            dir,
            kind,
        })
    }

    /// Fetches the release's package lists. If the machine's keyring doesn't
    /// know the release's signature, a newer keyring is fetched first, from a
    /// release whose signature it does know.
    pub fn refresh(&self) -> Result<()> {
        let what = format!("fetching the package lists of {}", self.name);
        step(&what, || {
            let error = match self.update(&keyring()?) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !error.to_string().contains("NO_PUBKEY") {
                return Err(error);
            }
            for source in KEYRING_SOURCES {
                if source != self.name && Self::fetch_keyring(source).is_ok() {
                    return self.update(&keyring()?);
                }
            }
            Err(error)
        })
    }

    fn update(&self, keyring: &Path) -> Result<()> {
        let sources = Mirrors::of_this_machine()?.sources_list(self.kind, &self.name, keyring);
        let list = self.dir.join("etc/sources.list");
        fs::write(&list, sources).context(LAYER, list.display())?;
        // Without this, a release that can't be had is only a warning.
        let strict = ["-q", "-o", "APT::Update::Error-Mode=any", "update"];
        output_of(LAYER, self.apt("apt-get").args(strict)).map(drop)
    }

    fn fetch_keyring(source: &str) -> Result<()> {
        let release = Self::open(source)?;
        release.update(&keyring()?)?;
        release.unpack("debian-archive-keyring", &paths::cache("keyring")?)
    }

    /// What the newest version of a package depends on.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut apt = self.apt("apt-cache");
        let output = output_of(LAYER, apt.args(["--no-all-versions", "show", package]))?;
        Ok(depends_of(&String::from_utf8_lossy(&output)))
    }

    /// Downloads the newest version of a package and unpacks it.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let deb = self.download(package)?;
        output_of(
            LAYER,
            Command::new("dpkg-deb").arg("-x").arg(&deb).arg(into),
        )?;
        fs::remove_file(&deb).context(LAYER, deb.display())
    }

    /// The same, or an older version where the archive has lost the newest.
    pub fn unpack_any(&self, package: &str, into: &Path) -> Result<()> {
        let newest = self.unpack(package, into);
        if newest.is_ok() {
            return newest;
        }
        let list = output_of(LAYER, self.apt("apt-cache").args(["madison", package]))?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let versions = list.lines().filter_map(|line| line.split('|').nth(1));
        for version in versions.map(str::trim).skip(1) {
            if self.unpack(&format!("{package}={version}"), into).is_ok() {
                return Ok(());
            }
        }
        newest
    }

    /// Downloads a package with all that it needs, and unpacks them.
    pub fn unpack_all(&self, package: &str, into: &Path) -> Result<()> {
        let dir = into.with_extension("archives");
        paths::fresh(&dir.join("partial"))?;
        let mut command = self.apt("apt-get");
        let archives = format!("Dir::Cache::Archives={}", dir.display());
        command.args(["-q", "-y", "--download-only", "--no-install-recommends"]);
        command.args(["-o", &archives, "install", package]);
        output_of(LAYER, &mut command)?;
        for deb in fs::read_dir(&dir).context(LAYER, dir.display())? {
            let deb = deb.context(LAYER, dir.display())?.path();
            if deb.extension().is_some_and(|end| end == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                output_of(LAYER, unpack.arg("-x").arg(&deb).arg(into))?;
            }
        }
        fs::remove_dir_all(&dir).context(LAYER, dir.display())
    }

    /// Downloads the newest version of a package.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        let dir = paths::unfinished(&self.dir.join("download"))?;
        output_of(
            LAYER,
            self.apt("apt-get")
                .args(["-q", "download", package])
                .current_dir(&dir),
        )?;
        let file = fs::read_dir(&dir)
            .context(LAYER, dir.display())?
            .filter_map(std::result::Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|end| end == "deb"));
        file.ok_or_else(|| failed(LAYER, format!("{package}: nothing was downloaded")))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        command.env("LC_ALL", "C");
        for option in [
            format!("Dir::Etc::SourceList={dir}/etc/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={dir}"),
            format!("Dir::State::Lists={dir}/lists"),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        if sources::backports_base(&self.name).is_some() {
            // apt takes nothing from backports by itself.
            let preferred = format!("APT::Default-Release={}", self.name);
            command.args(["-o", &preferred]);
        }
        command
    }
}

/// Where a release comes from, and the keyring that knows its signature, for
/// programs that fetch packages themselves.
pub fn source_of(release: &str) -> Result<(String, PathBuf)> {
    let _lock = paths::Lock::take(&format!("apt-{release}"))?;
    // Fetches a newer keyring if it takes one.
    Release::open(release)?.refresh()?;
    Ok((Mirrors::of_this_machine()?.main()?, keyring()?))
}

/// The newest keyring at hand: ours if one had to be fetched, else the machine's.
fn keyring() -> Result<PathBuf> {
    let fetched = paths::cache("keyring")?.join(KEYRING);
    let installed = Path::new("/").join(KEYRING);
    [fetched, installed]
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| {
            failed(
                LAYER,
                "no keyring of the distribution. As root, run: apt-get install -y debian-archive-keyring",
            )
        })
}

/// The packages in the `Depends:` field of a package's record.
fn depends_of(record: &str) -> Vec<String> {
    let depends = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"));
    let depends = depends.unwrap_or_default().split(',');
    let names = depends.map(|item| item.trim().split([' ', '(']).next().unwrap_or_default());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_names_without_versions() {
        let record = "Package: linux-image-amd64\nVersion: 7.2.13-1\n\
            Depends: linux-base-amd64 (= 7.2.13-1), linux-image-7.2.13+deb14-amd64 (= 7.2.13-1)\n";
        assert_eq!(
            depends_of(record),
            ["linux-base-amd64", "linux-image-7.2.13+deb14-amd64"]
        );
        assert!(depends_of("Package: x\n").is_empty());
    }
}
