// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What names, links and modes of a guest's make below a directory, and what they
//! cannot.

use super::*;
use std::fs as std_fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

/// A directory with one in it, and a neighbour that nothing may touch.
fn place(test: &str) -> (PathBuf, Tree) {
    let dir = std::env::temp_dir().join(format!("tree-{test}-{}", std::process::id()));
    let _ = std_fs::remove_dir_all(&dir);
    std_fs::create_dir_all(dir.join("in")).unwrap();
    std_fs::create_dir_all(dir.join("out")).unwrap();
    let tree = Tree::open(&dir.join("in")).unwrap();
    (dir, tree)
}

fn put(tree: &mut Tree, to: &str, data: &[u8], overwrite: bool) -> io::Result<()> {
    let mut file = tree.create(&name(to), 0o644, overwrite)?;
    file.write_all(data)?;
    tree.keep(file)
}

/// What the process's umask takes away.
fn umask() -> u32 {
    let status = std_fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    u32::from_str_radix(line.unwrap().trim(), 8).unwrap()
}

fn mode_of(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn errno(result: io::Result<()>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std_fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn names_lead_down_or_are_refused() {
    assert_eq!(name("./a//b/./c/").bytes(), b"a/b/c");
    assert!(name("./").is_top() && name("").is_top());
    assert_eq!(name("x").below(OsStr::new("top")).bytes(), b"top/x");
    let refused = |name: &[u8]| Name::parse(name).unwrap_err();
    assert_eq!(refused(b"/etc/passwd"), NameError::Absolute);
    for up in ["..", "../x", "a/../b", "a/..", "./.."] {
        assert_eq!(refused(up.as_bytes()), NameError::Up, "{up}");
    }
    assert_eq!(refused(b"a\0b"), NameError::Nul);
    assert_eq!(refused(&[b'a'; 5000]), NameError::TooLong);
    assert_eq!(name("...").bytes(), b"...");
}

#[test]
fn links_stay_below_the_top() {
    let holds = |link: &str, target: &str| name(link).holds_link(target.as_bytes());
    for (link, target) in [
        ("top/a", "b"),
        ("top/a", "./b/c"),
        ("top/d/a", "../b"),
        ("top/d/e/a", "../../b/c"),
    ] {
        assert!(holds(link, target), "{link} -> {target}");
    }
    for (link, target) in [
        ("top/a", "/etc/passwd"),
        ("top/a", ".."),
        ("top/a", "../b"),
        ("top/d/a", "../../b"),
        ("top/d/a", "x/../../../y"),
        ("top/d/a", "../x/../y"),
        ("top/a", ""),
        ("top/a", "b\0c"),
        ("top", "b/../.."),
    ] {
        assert!(!holds(link, target), "{link} -> {target}");
    }
}

#[test]
fn a_file_has_its_name_when_it_is_whole() {
    let (dir, mut tree) = place("whole");
    tree.directory(&name("d"), 0o755).unwrap();
    let mut file = tree.create(&name("d/f"), 0o755, false).unwrap();
    file.write_all(b"half").unwrap();
    assert!(!dir.join("in/d/f").exists());
    drop(file);
    assert_eq!(files(&dir.join("in/d")), Vec::<String>::new());
    let mut file = tree.create(&name("d/f"), 0o755, false).unwrap();
    file.write_all(b"whole").unwrap();
    tree.keep(file).unwrap();
    assert_eq!(files(&dir.join("in/d")), ["f"]);
    std_fs::remove_dir_all(dir).unwrap();
}

#[test]
fn modes_only_narrow_and_from_the_first_byte_on() {
    let (dir, mut tree) = place("modes");
    let umask = umask();
    for mode in (0..0o10000)
        .step_by(7)
        .chain([0o600, 0o4755, 0o2755, 0o1777])
    {
        let file = tree.create(&name("f"), mode, true).unwrap();
        let begun = mode_of(&dir.join("in").join(&file.unfinished.temporary));
        tree.keep(file).unwrap();
        let kept = mode_of(&dir.join("in/f"));
        assert_eq!((begun, kept), (mode & 0o777 & !umask, begun), "{mode:o}");
        tree.directory(&name("d"), mode).unwrap();
        let kept = mode_of(&dir.join("in/d"));
        assert_eq!(kept, (mode & 0o777 | 0o700) & !umask, "{mode:o}");
        std_fs::remove_dir(dir.join("in/d")).unwrap();
    }
    // One that is there stays as it is.
    tree.directory(&name("d"), 0o700).unwrap();
    tree.directory(&name("d"), 0o777).unwrap();
    assert_eq!(mode_of(&dir.join("in/d")), 0o700 & !umask);
    std_fs::remove_dir_all(dir).unwrap();
}

#[test]
fn no_name_makes_more_than_one_thing() {
    let (dir, mut tree) = place("deep");
    let deep = "d/".repeat(500) + "f";
    assert_eq!(errno(put(&mut tree, &deep, b"", true)), Some(Errno::NOENT));
    assert_eq!(
        errno(tree.directory(&name(&deep), 0o755)),
        Some(Errno::NOENT)
    );
    assert_eq!(files(&dir.join("in")), Vec::<String>::new());
    std_fs::remove_dir_all(dir).unwrap();
}

#[test]
fn hard_links_lead_only_to_files_that_were_made_here() {
    let (dir, mut tree) = place("hard");
    let inside = dir.join("in");
    std_fs::write(inside.join("before"), b"secret").unwrap();
    symlink("../out", inside.join("out")).unwrap();
    tree.directory(&name("d"), 0o755).unwrap();
    put(&mut tree, "d/a", b"data", false).unwrap();
    let link = |tree: &mut Tree, from: &str, to: &str, overwrite| {
        let made = tree.link(&name(from), &name(to), overwrite);
        made.map_err(|error| match error {
            LinkError::NotMade => None,
            LinkError::Io(error) => Errno::from_io_error(&error),
        })
    };
    assert_eq!(link(&mut tree, "b", "d/a", false), Ok(4));
    // And to what is a link itself; and, as nothing new, to itself.
    assert_eq!(link(&mut tree, "c", "b", false), Ok(4));
    assert_eq!(link(&mut tree, "b", "c", true), Ok(4));
    assert_eq!(link(&mut tree, "c", "c", true), Ok(4));
    let ino = |name: &str| inside.join(name).symlink_metadata().unwrap().ino();
    assert_eq!((ino("b"), ino("c")), (ino("d/a"), ino("d/a")));
    for to in ["before", "out/x", "none", "d", "x/y"] {
        assert_eq!(link(&mut tree, "e", to, true), Err(None), "{to}");
    }
    // What took the place of one that was made was not made here.
    std_fs::remove_file(inside.join("b")).unwrap();
    assert_eq!(link(&mut tree, "e", "b", true), Err(None));
    symlink("before", inside.join("b")).unwrap();
    assert_eq!(link(&mut tree, "e", "b", true), Err(None));
    std_fs::remove_file(inside.join("b")).unwrap();
    std_fs::hard_link(inside.join("before"), inside.join("b")).unwrap();
    assert_eq!(link(&mut tree, "e", "b", true), Err(None));
    // Nor is anything replaced that may not be.
    assert_eq!(
        link(&mut tree, "before", "d/a", false),
        Err(Some(Errno::EXIST))
    );
    assert_eq!(link(&mut tree, "d", "d/a", true), Err(Some(Errno::ISDIR)));
    let mut left = files(&inside);
    left.sort();
    assert_eq!(left, ["b", "before", "c", "d", "out"]);
    assert_eq!(std_fs::read(inside.join("before")).unwrap(), b"secret");
    std_fs::remove_dir_all(dir).unwrap();
}

#[test]
fn names_of_what_was_made_take_bounded_memory() {
    let mut made = Made::default();
    for number in 0..40_000_u64 {
        let mut name = vec![b'x'; MAX_NAME];
        name.extend(number.to_le_bytes());
        made.add(name, FileId(0, number));
    }
    assert!(made.bytes <= MAX_MADE && made.files.len() < 40_000);
}

#[test]
fn what_is_there_is_overwritten_only_when_it_may_be() {
    let (dir, mut tree) = place("over");
    put(&mut tree, "f", b"old", false).unwrap();
    assert_eq!(
        errno(put(&mut tree, "f", b"new", false)),
        Some(Errno::EXIST)
    );
    assert_eq!(std_fs::read(dir.join("in/f")).unwrap(), b"old");
    put(&mut tree, "f", b"new", true).unwrap();
    assert_eq!(std_fs::read(dir.join("in/f")).unwrap(), b"new");
    tree.directory(&name("d"), 0o755).unwrap();
    assert_eq!(errno(put(&mut tree, "d", b"", true)), Some(Errno::ISDIR));
    assert_eq!(errno(put(&mut tree, "f/x", b"", true)), Some(Errno::NOTDIR));
    // One that came into being meanwhile is not replaced either.
    let mut late = tree.create(&name("late"), 0o644, false).unwrap();
    late.write_all(b"ours").unwrap();
    std_fs::write(dir.join("in/late"), b"theirs").unwrap();
    assert_eq!(errno(tree.keep(late)), Some(Errno::EXIST));
    assert_eq!(std_fs::read(dir.join("in/late")).unwrap(), b"theirs");
    let mut left = files(&dir.join("in"));
    left.sort();
    assert_eq!(left, ["d", "f", "late"]);
    std_fs::remove_dir_all(dir).unwrap();
}

#[test]
fn no_link_is_followed() {
    let (dir, mut tree) = place("link");
    std_fs::write(dir.join("out/secret"), b"secret").unwrap();
    // What a guest could send, and what could be there.
    tree.symlink(&name("a"), b"../out", false).unwrap();
    symlink(dir.join("out/secret"), dir.join("in/b")).unwrap();
    assert_eq!(errno(put(&mut tree, "a/x", b"", true)), Some(Errno::NOTDIR));
    assert_eq!(
        errno(tree.directory(&name("a/x"), 0o755)),
        Some(Errno::NOTDIR)
    );
    assert_eq!(
        errno(tree.directory(&name("a"), 0o755)),
        Some(Errno::NOTDIR)
    );
    for to in ["a/secret", "b"] {
        assert!(tree.link(&name("c"), &name(to), true).is_err());
    }
    assert_eq!(errno(put(&mut tree, "b", b"", false)), Some(Errno::EXIST));
    // The link is replaced, and not what it leads to.
    put(&mut tree, "b", b"mine", true).unwrap();
    assert!(dir.join("in/b").symlink_metadata().unwrap().is_file());
    assert_eq!(std_fs::read(dir.join("out/secret")).unwrap(), b"secret");
    assert_eq!(files(&dir.join("out")), ["secret"]);
    std_fs::remove_dir_all(dir).unwrap();
}

proptest! {
    #[test]
    fn no_part_of_a_name_leads_elsewhere(bytes in proptest::collection::vec(
        prop_oneof![Just(b'.'), Just(b'/'), Just(b'a'), any::<u8>()], 0..20)) {
        if let Ok(name) = Name::parse(&bytes) {
            for part in &name.0 {
                prop_assert!(!part.is_empty() && part != "." && part != "..");
                prop_assert!(!part.as_bytes().contains(&b'/'));
            }
        }
    }
}
