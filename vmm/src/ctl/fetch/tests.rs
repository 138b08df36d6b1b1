// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What honest and hostile guests send, and what is there afterwards. A shell
//! is the guest: its output is the archive.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use super::*;
use crate::ctl::tar::tests::{archive, header, padded, sign};

/// A directory to copy into, with a neighbour that must stay as it is.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fetch-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("in")).unwrap();
        fs::create_dir_all(dir.join("out")).unwrap();
        fs::write(dir.join("out/secret"), "secret").unwrap();
        Self(dir)
    }

    fn fetch(&self, overwrite: bool) -> Fetch {
        let dir = self.0.join("in");
        Fetch {
            tree: Tree::open(&dir).unwrap(),
            dir,
            overwrite,
            most: MAX_SIZE,
            entries: 0,
            running: Running::default(),
            bar: Bar::new(None, false),
            json: true,
            answers: Vec::new(),
            files: 0,
            left_out: 0,
            failed: 0,
        }
    }

    /// What a copy of `guest:/x/top` makes of an archive.
    fn take(&self, fetch: &mut Fetch, bytes: &[u8]) -> Result<(), String> {
        let file = self.0.join("archive");
        fs::write(&file, bytes).unwrap();
        let mut command = Command::new("cat");
        command.arg(file);
        let job = Job::new("/x/top", None).unwrap();
        fetch
            .fetch(&job, command)
            .map_err(|error| error.to_string())
    }

    /// All that is in the directory.
    fn list(&self) -> Vec<String> {
        let dir = self.0.join("in");
        let mut found = Vec::new();
        let mut left = vec![dir.clone()];
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                }
                let path = entry.path();
                let path = path.strip_prefix(&dir).unwrap();
                found.push(path.to_str().unwrap().to_owned());
            }
        }
        found.sort();
        found
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join("in").join(name)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let outside: Vec<_> = fs::read_dir(self.0.join("out")).unwrap().collect();
        assert_eq!(outside.len(), 1, "something has come out");
        assert_eq!(
            fs::read_to_string(self.0.join("out/secret")).unwrap(),
            "secret"
        );
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn dir(name: &str) -> Vec<u8> {
    header(name.as_bytes(), b'5', 0, b"")
}

fn file(name: &str, data: &str) -> Vec<u8> {
    let size = data.len() as u64;
    [
        header(name.as_bytes(), b'0', size, b""),
        padded(data.as_bytes()),
    ]
    .concat()
}

fn with_mode(mut entry: Vec<u8>, mode: u32) -> Vec<u8> {
    entry[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    sign(&mut entry);
    entry
}

fn link(name: &str, kind: u8, to: &str) -> Vec<u8> {
    header(name.as_bytes(), kind, 0, to.as_bytes())
}

#[test]
fn a_directory_comes_with_all_that_is_in_it() {
    let place = Place::new("tree");
    let mut fetch = place.fetch(false);
    let bytes = archive(&[
        dir("./"),
        file("./a", "one"),
        dir("./d/"),
        file("./d/b", "two"),
        link("./d/same", b'1', "./a"),
        link("./d/soft", b'2', "../a"),
        link("./far", b'2', "/etc/passwd"),
        link("./up", b'2', "../../out/secret"),
        header(b"./fifo", b'6', 0, b""),
    ]);
    assert_eq!(place.take(&mut fetch, &bytes), Ok(()));
    let wanted = [
        "top",
        "top/a",
        "top/d",
        "top/d/b",
        "top/d/same",
        "top/d/soft",
    ];
    assert_eq!(place.list(), wanted);
    assert_eq!(place.read("top/d/soft"), "one");
    assert_eq!(place.read("top/d/same"), "one");
    let ino = |name| place.0.join("in").join(name).metadata().unwrap().ino();
    assert_eq!(ino("top/d/same"), ino("top/a"));
    assert_eq!((fetch.files, fetch.left_out, fetch.failed), (3, 3, 0));
    // What a link leads to has come once.
    assert_eq!(fetch.bar.bytes, 6);
    let linked = fetch
        .answers
        .iter()
        .find_map(|answer| answer.get("link_to"));
    assert!(linked.unwrap().as_str().unwrap().ends_with("in/top/a"));
}

#[test]
fn a_private_file_stays_private_and_gives_nobody_rights() {
    let place = Place::new("private");
    let bytes = archive(&[
        with_mode(dir("./"), 0o700),
        with_mode(dir("./d/"), 0o050),
        with_mode(file("./key", "secret"), 0o600),
        with_mode(file("./d/su", "program"), 0o4755),
        with_mode(file("./none", ""), 0),
    ]);
    assert_eq!(place.take(&mut place.fetch(false), &bytes), Ok(()));
    for (name, widest) in [
        ("top", 0o700),
        ("top/d", 0o750),
        ("top/key", 0o600),
        ("top/d/su", 0o755),
        ("top/none", 0),
    ] {
        let mode = place.0.join("in").join(name).metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode & !widest, 0, "{name} is {mode:o}");
        assert_eq!(mode & 0o700, widest & 0o700, "{name} is {mode:o}");
    }
    let mut bad = file("./key", "");
    bad[100..108].copy_from_slice(b"rw-r--r-");
    sign(&mut bad);
    let said = place
        .take(&mut place.fetch(true), &archive(&[bad]))
        .unwrap_err();
    assert!(said.contains("a mode is no number"), "{said}");
}

#[test]
fn hard_links_cost_nothing_and_lead_to_nothing_that_was_there() {
    let place = Place::new("hard");
    fs::create_dir(place.0.join("in/top")).unwrap();
    fs::write(place.0.join("in/top/before"), "mine").unwrap();
    let mut parts = vec![dir("./"), file("./a", &"x".repeat(100_000))];
    for number in 0..2000 {
        parts.push(link(&format!("./l{number}"), b'1', "./a"));
    }
    parts.push(link("./theirs", b'1', "./before"));
    parts.push(link("./none", b'1', "./later"));
    parts.push(file("./later", ""));
    let mut fetch = place.fetch(false);
    assert_eq!(place.take(&mut fetch, &archive(&parts)), Ok(()));
    assert_eq!((fetch.files, fetch.left_out, fetch.failed), (2002, 0, 2));
    let about = place.0.join("in/top/l1999").metadata().unwrap();
    assert_eq!((about.nlink(), about.len()), (2001, 100_000));
    assert_eq!(fetch.bar.bytes, 100_000);
    let before = place.0.join("in/top/before").metadata().unwrap();
    assert_eq!(before.nlink(), 1);
    assert!(!place.0.join("in/top/theirs").exists());
}

#[test]
fn an_archive_ends_at_its_limits() {
    let place = Place::new("limits");
    let bytes = archive(&[
        dir("./"),
        file("./a", "12345"),
        link("./b", b'1', "./a"),
        file("./c", "123456"),
    ]);
    let mut fetch = place.fetch(false);
    fetch.most = 11;
    assert_eq!(place.take(&mut fetch, &bytes), Ok(()));
    let mut fetch = place.fetch(true);
    fetch.most = 10;
    let said = place.take(&mut fetch, &bytes).unwrap_err();
    assert!(said.contains("more than 10 bytes; --max-size"), "{said}");
    let mut fetch = place.fetch(true);
    fetch.entries = MAX_ENTRIES - 2;
    let said = place.take(&mut fetch, &bytes).unwrap_err();
    assert!(said.contains("files, directories and links"), "{said}");
    // A size that no disk has is refused before a byte of it comes.
    let huge = archive(&[header(b"a", b'0', 1 << 32, b"")]);
    let mut fetch = place.fetch(true);
    fetch.most = 1 << 31;
    let said = place.take(&mut fetch, &huge).unwrap_err();
    assert!(said.contains("--max-size"), "{said}");
}

#[test]
fn an_entry_makes_one_thing_at_most() {
    let place = Place::new("one");
    let deep = "./".to_owned() + &"d/".repeat(40);
    let bytes = archive(&[dir("./"), dir(&deep), file(&(deep + "f"), "")]);
    let mut fetch = place.fetch(false);
    assert_eq!(place.take(&mut fetch, &bytes), Ok(()));
    assert_eq!((place.list(), fetch.failed), (vec!["top".to_owned()], 2));
}

#[test]
fn a_file_has_the_name_that_was_asked_for() {
    let place = Place::new("name");
    let mut fetch = place.fetch(false);
    let bytes = archive(&[file("../../etc/passwd", "data")]);
    assert_eq!(place.take(&mut fetch, &bytes), Ok(()));
    assert_eq!(place.list(), ["top"]);
    // And there is one of it.
    let bytes = archive(&[file("a", "1"), file("b", "2")]);
    let said = place.take(&mut place.fetch(true), &bytes).unwrap_err();
    assert!(said.contains("something else"), "{said}");
    assert_eq!(place.list(), ["top"]);
}

#[test]
fn names_that_lead_out_end_the_copy() {
    for name in ["../x", "./../x", "a/../../x", "/tmp/x", "..", "./d/.."] {
        let place = Place::new("names");
        let bytes = archive(&[
            dir("./"),
            file("./ok", "1"),
            file(name, "bad"),
            file("./no", ""),
        ]);
        let said = place.take(&mut place.fetch(true), &bytes).unwrap_err();
        assert!(said.contains("the guest sends a name"), "{name}: {said}");
        assert_eq!(place.list(), ["top", "top/ok"], "{name}");
    }
    let place = Place::new("links");
    for to in ["../out/secret", "/etc/passwd"] {
        let bytes = archive(&[dir("./"), link("./x", b'1', to)]);
        let said = place.take(&mut place.fetch(true), &bytes).unwrap_err();
        assert!(said.contains("the guest sends a name"), "{to}: {said}");
    }
    assert_eq!(place.list(), ["top"]);
}

#[test]
fn no_link_is_written_through() {
    let place = Place::new("through");
    fs::create_dir(place.0.join("in/top")).unwrap();
    symlink(place.0.join("out"), place.0.join("in/top/there")).unwrap();
    symlink("../../out/secret", place.0.join("in/top/file")).unwrap();
    let mut fetch = place.fetch(true);
    let bytes = archive(&[
        dir("./"),
        // Its own link, inside; a name through it is refused all the same.
        dir("./d/"),
        link("./l", b'2', "d"),
        file("./l/x", "bad"),
        file("./there/x", "bad"),
        dir("./there/"),
        link("./there/y", b'2', "x"),
        link("./z", b'1', "./there/secret"),
        link("./w", b'1', "./file"),
        // What a link is gets replaced, not what it leads to.
        file("./file", "new"),
    ]);
    assert_eq!(place.take(&mut fetch, &bytes), Ok(()));
    assert_eq!(fetch.failed, 6);
    assert_eq!(
        place.list(),
        ["top", "top/d", "top/file", "top/l", "top/there"]
    );
    assert_eq!(place.read("top/file"), "new");
}

#[test]
fn what_is_there_stays_without_overwrite() {
    let place = Place::new("there");
    let bytes = archive(&[dir("./"), file("./a", "old"), file("./b", "old")]);
    assert_eq!(place.take(&mut place.fetch(false), &bytes), Ok(()));
    let mut again = place.fetch(false);
    let bytes = archive(&[dir("./"), file("./a", "new"), file("./c", "new")]);
    assert_eq!(place.take(&mut again, &bytes), Ok(()));
    assert_eq!((again.files, again.failed), (1, 1));
    assert_eq!(
        (place.read("top/a"), place.read("top/c")),
        ("old".into(), "new".into())
    );
    let mut over = place.fetch(true);
    assert_eq!(place.take(&mut over, &bytes), Ok(()));
    assert_eq!((over.files, over.failed), (2, 0));
    assert_eq!(place.read("top/a"), "new");
}

#[test]
fn a_stream_that_ends_early_leaves_no_half_of_a_file() {
    let place = Place::new("early");
    let whole = archive(&[dir("./"), file("./a", "1"), file("./b", &"x".repeat(5000))]);
    for (cut, left) in [
        (0, &[][..]),
        (511, &[]),
        (512, &["top"]),
        (2100, &["top", "top/a"]),
        (5000, &["top", "top/a"]),
    ] {
        let said = place
            .take(&mut place.fetch(true), &whole[..cut])
            .unwrap_err();
        assert!(said.contains("the stream ended"), "{cut}: {said}");
        assert_eq!(place.list(), left, "{cut}");
    }
}

#[test]
fn a_program_that_fails_is_told() {
    let place = Place::new("fails");
    fs::write(
        place.0.join("archive"),
        archive(&[dir("./"), file("./a", "1")]),
    )
    .unwrap();
    let job = Job::new("/x/top", None).unwrap();
    for (end, words) in [(255, "the connection"), (2, "not all of it")] {
        let mut command = Command::new("sh");
        let script = format!("cat {}; exit {end}", place.0.join("archive").display());
        command.args(["-c", &script]);
        let said = place.fetch(true).fetch(&job, command).unwrap_err();
        assert!(said.to_string().contains(words), "{end}: {said}");
    }
    let mut command = Command::new("sh");
    command.args(["-c", "exit 1"]);
    let said = place.fetch(true).fetch(&job, command).unwrap_err();
    assert_eq!(said.to_string(), "guest:/x/top: not copied");
    // A stop leaves nothing behind, and is not waited for.
    let mut fetch = place.fetch(true);
    let stop = fetch.running.clone();
    let ended = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        stop.stop();
    });
    let mut command = Command::new("sh");
    let half = format!(
        "head -c 2100 {}; exec sleep 60",
        place.0.join("archive").display()
    );
    command.args(["-c", &half]);
    fs::write(
        place.0.join("archive"),
        archive(&[dir("./"), file("./b", &"x".repeat(5000))]),
    )
    .unwrap();
    assert!(fetch.fetch(&job, command).is_err());
    ended.join().unwrap();
    assert_eq!(place.list(), ["top", "top/a"]);
}

#[test]
fn the_command_in_the_guest_does_it() {
    let place = Place::new("script");
    let guest = place.0.join("guest dir's");
    fs::create_dir_all(guest.join("-d/sub")).unwrap();
    fs::write(guest.join("-d/sub/file"), "text").unwrap();
    symlink("-d/sub/file", guest.join("link")).unwrap();
    let run = |source: &str| {
        let source = format!("{}/{source}", guest.display());
        let job = Job::new(&source, None).unwrap();
        let words = job.words(&Cp::default());
        let mut command = Command::new("sh");
        command.arg("-c").args(&words.command);
        let mut fetch = place.fetch(false);
        fetch
            .fetch(&job, command)
            .map_err(|error| error.to_string())
    };
    assert_eq!(run("-d/"), Ok(()));
    assert_eq!(run("link"), Ok(()));
    assert!(run("none").unwrap_err().ends_with("/none: not copied"));
    assert_eq!(place.list(), ["-d", "-d/sub", "-d/sub/file", "link"]);
    assert_eq!(
        (place.read("-d/sub/file"), place.read("link")),
        ("text".into(), "text".into())
    );
    assert!(
        place
            .0
            .join("in/link")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
}

#[test]
fn paths_of_the_guest_are_absolute_and_name_something() {
    let job = Job::new("/var/log/", None).unwrap();
    assert_eq!((job.dir, job.name), (b"/var/".to_vec(), b"log".to_vec()));
    let job = Job::new("/etc", Some(OsStr::new("here"))).unwrap();
    assert_eq!((job.dir, job.top), (b"/".to_vec(), "here".into()));
    for bad in ["", "/", "//", "etc", "/a/..", "/."] {
        let error = Job::new(bad, None).unwrap_err();
        assert!(matches!(error, CtlError::Usage(_)), "{bad}: {error}");
    }
}
