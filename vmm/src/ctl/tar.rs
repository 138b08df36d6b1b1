// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a tar archive that a guest sends. The guest is not trusted: every
//! length has a limit, and a name is only bytes here; where it may lead is for
//! [`super::tree`] to say.
//!
//! ```text
//!  ┌ header, 512 bytes ┬ data, size bytes ┬ zeroes to 512 ┐ … ┌ zeroes, 2 × 512 ┐
//!
//!  name 0  mode 100  size 124  checksum 148  type 156  link 157  magic 257  prefix 345
//! ```
//!
//! What the tar programs of Linux distributions write is read: POSIX ustar with
//! extended headers (pax), and GNU's long names and large numbers.

use std::io::{self, ErrorKind, Read};

const BLOCK: usize = 512;
/// Longer than any path that Linux takes.
const MAX_EXTENSION: u64 = 64 << 10;
/// Headers that say something of the next one. More in a row make no sense.
const MAX_EXTENSIONS: u32 = 16;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream failed.
    #[error("{0}")]
    Io(io::Error),
    /// There is no end mark, or data is missing.
    #[error("the stream ended before the archive did")]
    Ended,
    /// Something else than a header.
    #[error("what the guest sends is no tar archive: {0}")]
    Malformed(&'static str),
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file with so many bytes.
    File(u64),
    /// The same file as an earlier one.
    HardLink(Vec<u8>),
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A device, a FIFO, or something unknown, by its type's letter.
    Other(u8),
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as it was sent.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Who may do what with it: the nine bits of permissions, and no others.
    pub mode: u32,
}

/// An archive, read to its end and no further.
#[derive(Debug)]
pub struct Archive<R> {
    input: R,
    /// Data of the present entry that is not read.
    left: u64,
    /// What fills up its last block.
    padding: u64,
}

/// What headers say of the one that follows them.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Archive<R> {
    /// From its first byte on.
    pub fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; what is left of the present one is skipped.
    pub fn entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extension = Extension::default();
        for _ in 0..=MAX_EXTENSIONS {
            self.skip()?;
            let mut block = [0; BLOCK];
            exactly(&mut self.input, &mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header(&block);
            header.check()?;
            let (size, mode) = (header.size()?, header.mode()?);
            match header.kind() {
                b'L' => extension.name = Some(without_nul(self.extension(size)?)),
                b'K' => extension.link = Some(without_nul(self.extension(size)?)),
                b'x' => extension.read(&self.extension(size)?)?,
                // Of the whole archive: nothing that matters here.
                b'g' => drop(self.extension(size)?),
                kind => {
                    let (name, kind) = self.begin(&header, kind, size, extension);
                    return Ok(Some(Entry { name, kind, mode }));
                }
            }
        }
        Err(TarError::Malformed("it has nothing but extensions"))
    }

    /// Some of the present entry's data; nothing when there is no more.
    pub fn data(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let into = into.get_mut(..most).unwrap_or_default();
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            match self.input.read(into) {
                Ok(0) => return Err(TarError::Ended),
                Ok(count) => {
                    self.left = self.left.saturating_sub(count as u64);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Io(error)),
            }
        }
    }

    /// What it is read from.
    pub fn into_input(self) -> R {
        self.input
    }

    fn begin(&mut self, header: &Header, kind: u8, size: u64, with: Extension) -> (Vec<u8>, Kind) {
        let name = with.name.unwrap_or_else(|| header.name());
        let link = with.link.unwrap_or_else(|| header.link());
        let size = with.size.unwrap_or(size);
        let kind = match kind {
            // Before there was a type for it.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File(size),
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'5' => Kind::Directory,
            other => Kind::Other(other),
        };
        // Links, devices and directories have none, whatever their size says.
        let has_data = !matches!(kind, Kind::HardLink(_) | Kind::Symlink(_) | Kind::Directory)
            && !matches!(kind, Kind::Other(b'3' | b'4' | b'6'));
        self.expect(if has_data { size } else { 0 });
        (name, kind)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The data of an extension.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let len = usize::try_from(size.min(MAX_EXTENSION + 1)).unwrap_or(usize::MAX);
        if size > MAX_EXTENSION {
            return Err(TarError::Malformed("a name is too long"));
        }
        let mut data = vec![0; len];
        exactly(&mut self.input, &mut data)?;
        self.expect(size);
        self.left = 0;
        Ok(data)
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let mut scratch = [0; 16 * BLOCK];
        while self.data(&mut scratch)? > 0 {}
        self.left = std::mem::take(&mut self.padding);
        while self.data(&mut scratch)? > 0 {}
        Ok(())
    }
}

impl Extension {
    /// Lines of `length key=value`, the length being that of the whole line.
    fn read(&mut self, mut data: &[u8]) -> Result<(), TarError> {
        const BAD: TarError = TarError::Malformed("an extended header is broken");
        while !data.is_empty() {
            let space = data.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
            let digits = data.get(..space).unwrap_or_default();
            let len: usize = std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or(BAD)?;
            let line = data.get(space + 1..len).ok_or(BAD)?;
            let line = line.strip_suffix(b"\n").ok_or(BAD)?;
            let equals = line.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            let (key, value) = line.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let digits = std::str::from_utf8(value).ok();
                    self.size = Some(digits.and_then(|d| d.parse().ok()).ok_or(BAD)?);
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(TarError::Malformed("it has sparse files"));
                }
                _ => {}
            }
            data = data.get(len..).unwrap_or_default();
        }
        Ok(())
    }
}

struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn field(&self, from: usize, len: usize) -> &[u8] {
        self.0.get(from..from + len).unwrap_or_default()
    }

    /// The sum of all bytes, those of the sum itself counting as spaces.
    fn check(&self) -> Result<(), TarError> {
        let bytes = self.0.iter().enumerate();
        let sum: u64 = bytes
            .map(|(at, byte)| {
                u64::from(if (148..156).contains(&at) {
                    b' '
                } else {
                    *byte
                })
            })
            .sum();
        // No fuzzer finds a sum.
        if cfg!(fuzzing) || number(self.field(148, 8)) == Some(sum) {
            Ok(())
        } else {
            Err(TarError::Malformed("a header's checksum is wrong"))
        }
    }

    fn size(&self) -> Result<u64, TarError> {
        number(self.field(124, 12)).ok_or(TarError::Malformed("a size is no number"))
    }

    /// What lets others act as the owner (set-user-id and the like) is not read.
    fn mode(&self) -> Result<u32, TarError> {
        let mode = number(self.field(100, 8)).ok_or(TarError::Malformed("a mode is no number"))?;
        Ok(u32::try_from(mode & 0o777).unwrap_or(0))
    }

    fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        // GNU's own format has times where POSIX has more of the name.
        let is_posix = self.field(257, 6) == b"ustar\0";
        let prefix = until_nul(self.field(345, 155));
        if is_posix && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }
}

/// Octal digits; or, for what is too large, a number of 256 to the base.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = field.split_first() {
        let mut value = 0u64;
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim();
    match text {
        "" => Some(0),
        // `from_str_radix` would take a sign.
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => u64::from_str_radix(text, 8).ok(),
        _ => None,
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    field.get(..end.unwrap_or(field.len())).unwrap_or_default()
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(until_nul(&name).len());
    name
}

fn exactly(input: &mut impl Read, into: &mut [u8]) -> Result<(), TarError> {
    input.read_exact(into).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => TarError::Ended,
        _ => TarError::Io(error),
    })
}

#[cfg(test)]
pub(super) mod tests;
