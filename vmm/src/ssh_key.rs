// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--ssh-key`: public keys that may log in as root, given to a guest that has
//! no network and no disk of ours.
//!
//! They go as a credential of systemd's on the kernel's command line:
//!
//! ```text
//!  systemd.set_credential_binary=ssh.authorized_keys.root:BASE64
//! ```
//!
//! From version 252 on systemd writes it to `/root/.ssh/authorized_keys` if there
//! is no such file, with nothing of ours in the guest.

use std::fs;
use std::str::FromStr;

use crate::escape;

const WORD: &str = "systemd.set_credential_binary=ssh.authorized_keys.root:";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// How the names of kinds of keys begin.
const KINDS: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];
/// How each key begins: the length of its kind's name, which is short.
const BLOB: &str = "AAAA";

/// The keys of a file, one a line, without their comments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile(String);

impl KeyFile {
    /// Reads a file as `ssh-keygen` makes it, or one of many lines.
    pub fn read(path: &str) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => "it is no public key".to_owned(),
            _ => format!("cannot read it: {error}"),
        })?;
        text.parse()
    }
}

impl FromStr for KeyFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("PRIVATE KEY-----") {
            return Err("it is a private key: give the public one, in a file with .pub".into());
        }
        let mut keys = String::new();
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let key = key(line).ok_or_else(|| {
                let line = escape::line_within(line, 60);
                format!("no public key of OpenSSH's in '{line}'")
            })?;
            keys.push_str(key);
            keys.push('\n');
        }
        if keys.is_empty() {
            return Err("there is no key in it".into());
        }
        Ok(Self(keys))
    }
}

/// Options, if it has some, kind and key.
fn key(line: &str) -> Option<&str> {
    if line.chars().any(char::is_control) {
        return None;
    }
    let mut kind = false;
    let mut end = 0;
    for word in line.split(' ') {
        end += word.len();
        if kind && word.starts_with(BLOB) {
            return line.get(..end);
        }
        kind = KINDS.iter().any(|name| word.starts_with(name));
        end += 1;
    }
    None
}

/// The kernel's command line, with the keys before what the user has said, where
/// they are for the kernel even if that has a `--` in it.
pub fn cmdline(user: &str, keys: &[KeyFile]) -> String {
    if keys.is_empty() {
        return user.to_owned();
    }
    let all: String = keys.iter().map(|file| file.0.as_str()).collect();
    format!("{WORD}{} {user}", base64(all.as_bytes()))
}

fn base64(data: &[u8]) -> String {
    let mut text = String::new();
    for three in data.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * at) & 0x3f).unwrap_or(0);
            let letter = ALPHABET.get(index).copied().map_or('=', char::from);
            text.push(if usize::try_from(at).is_ok_and(|at| at > three.len()) {
                '='
            } else {
                letter
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0e";

    #[test]
    fn it_is_base64() {
        for (data, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(data.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfb, 0xff]), "//v/");
    }

    #[test]
    fn keys_lose_their_comments_and_nothing_else() {
        let file = |text: &str| text.parse::<KeyFile>().map(|file| file.0);
        let alone = Ok(format!("{KEY}\n"));
        assert_eq!(file(KEY), alone);
        assert_eq!(file(&format!("# mine\n\n  {KEY} me@here now\r\n")), alone);
        let options = format!("restrict,command=\"a b\" {KEY}");
        let both = format!("{options} x\n{KEY}");
        assert_eq!(file(&both), Ok(format!("{options}\n{KEY}\n")));
        for (bad, word) in [
            ("", "no key"),
            ("# only\n", "no key"),
            ("ssh-ed25519", "no public key"),
            ("ssh-ed25519 hello", "no public key"),
            ("hello AAAA", "no public key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nx", "private"),
            ("ssh-rsa\u{1b}[2J AAAA", "'ssh-rsa\\u{1b}[2J AAAA'"),
        ] {
            let error = file(bad).unwrap_err();
            assert!(error.contains(word), "{bad:?}: {error}");
        }
    }

    #[test]
    fn keys_come_before_the_users_words() {
        assert_eq!(cmdline("a -- b", &[]), "a -- b");
        let keys = [
            "ssh-rsa AAAAx".parse().unwrap(),
            "ssh-rsa AAAAy".parse().unwrap(),
        ];
        // "ssh-rsa AAAAx\nssh-rsa AAAAy\n"
        assert_eq!(
            cmdline("a -- b", &keys),
            "systemd.set_credential_binary=ssh.authorized_keys.root:\
             c3NoLXJzYSBBQUFBeApzc2gtcnNhIEFBQUF5Cg== a -- b"
        );
    }
}
