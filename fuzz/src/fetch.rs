// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vmmctl cp guest:`: an archive that a guest sends, unpacked into a directory. What
//! is beside the directory stays as it is, and nothing in it leads out.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use vmm::ctl::fetch::unpack_into;

/// A directory to unpack into, with a neighbour.
fn place() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("vmbus-fuzz-fetch-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("out")).unwrap();
        fs::write(dir.join("out/secret"), "secret").unwrap();
        dir
    })
}

/// Unpacks `data`.
pub fn run(data: &[u8]) {
    let (inside, out) = (place().join("in"), place().join("out"));
    let _ = fs::remove_dir_all(&inside);
    fs::create_dir(&inside).unwrap();
    let _ = unpack_into(&inside, "top", data);
    let secret = fs::read(out.join("secret")).unwrap();
    assert_eq!(secret, b"secret");
    let beside = [place(), &out].map(|dir| fs::read_dir(dir).unwrap().count());
    assert_eq!(beside, [2, 1], "something is beside the directory");
    check(&inside, &inside);
}

/// No link below `dir` leads out of `top`.
fn check(top: &Path, dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            check(top, &path);
        } else if kind.is_symlink() {
            let to = fs::read_link(&path).unwrap();
            let mut depth = dir.strip_prefix(top).unwrap().components().count();
            for part in to.components() {
                match part {
                    Component::ParentDir => depth = depth.checked_sub(1).expect("it leads out"),
                    Component::Normal(_) => depth += 1,
                    Component::CurDir => {}
                    _ => panic!("{} leads to {}", path.display(), to.display()),
                }
            }
        } else {
            assert!(kind.is_file(), "{}", path.display());
        }
    }
}
