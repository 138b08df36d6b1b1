// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are: the workspace, what cargo builds, what we cache.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Result};

const LAYER: &str = "cache";

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => env::current_dir().unwrap_or_default().join(dir),
        _ => workspace().join("target"),
    }
}

/// A directory of the cache, made if missing. The cache outlives builds in
/// other target directories; `XTASK_CACHE` moves it.
pub fn cache(dir: &str) -> Result<PathBuf> {
    let base = env::var_os("XTASK_CACHE")
        .map_or_else(|| workspace().join("target/guest-cache"), PathBuf::from);
    let path = base.join(dir);
    fs::create_dir_all(&path).context(LAYER, path.display())?;
    path.canonicalize().context(LAYER, path.display())
}

/// The scratch directory that is writable in the nest too, under the same path.
pub fn scratch() -> Result<PathBuf> {
    let path = env::var_os("XTASK_SCRATCH")
        .map_or_else(|| workspace().join("target/guest-scratch"), PathBuf::from);
    fs::create_dir_all(&path).context(LAYER, path.display())?;
    path.canonicalize().context(LAYER, path.display())
}

/// Holds a named lock of the cache until dropped, so that two `cargo xtask`
/// don't fetch or build the same thing at once.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

impl Lock {
    /// Waits for the lock.
    pub fn take(name: &str) -> Result<Self> {
        let path = cache("locks")?.join(name);
        let file = File::create(&path).context(LAYER, path.display())?;
        flock(&file, FlockOperation::LockExclusive).context(LAYER, path.display())?;
        Ok(Self(file))
    }
}

/// A fresh directory next to `path`; [`fs::rename`] to `path` completes it, so
/// that an interrupted step leaves nothing that looks finished.
pub fn unfinished(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let dir = path.with_file_name(format!("{name}.unfinished"));
    fresh(&dir)?;
    Ok(dir)
}

/// Moves a finished directory into place, over an older one.
pub fn finish(dir: &Path, path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).context(LAYER, path.display())?;
    }
    fs::rename(dir, path).context(LAYER, path.display())
}

/// An empty directory, whatever was there.
pub fn fresh(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).context(LAYER, path.display())?;
    }
    fs::create_dir_all(path).context(LAYER, path.display())
}
