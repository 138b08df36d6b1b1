// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As much of 64-bit ELF as it takes to find a section by its name.

/// The contents of a section of a little-endian 64-bit ELF file.
pub fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !is_elf64(file) {
        return None;
    }
    let table = usize::try_from(number(file, 0x28, 8)?).ok()?;
    let entry = usize::try_from(number(file, 0x3a, 2)?).ok()?;
    let count = usize::try_from(number(file, 0x3c, 2)?).ok()?;
    let names = usize::try_from(number(file, 0x3e, 2)?).ok()?;
    let header = |index: usize| table.checked_add(index.checked_mul(entry)?);
    let names = contents(file, header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let at = usize::try_from(number(file, header, 4)?).ok()?;
        let found = names.get(at..)?.split(|byte| *byte == 0).next()?;
        (found == name.as_bytes()).then(|| contents(file, header))?
    })
}

/// Whether the file starts like a little-endian 64-bit ELF file.
pub fn is_elf64(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF\x02\x01")
}

fn contents(file: &[u8], header: usize) -> Option<&[u8]> {
    let offset = usize::try_from(number(file, header.checked_add(0x18)?, 8)?).ok()?;
    let size = usize::try_from(number(file, header.checked_add(0x20)?, 8)?).ok()?;
    file.get(offset..offset.checked_add(size)?)
}

fn number(file: &[u8], at: usize, length: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    let field = file.get(at..at.checked_add(length)?)?;
    bytes.get_mut(..length)?.copy_from_slice(field);
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file with one section, `name`, and the table of names.
    pub(crate) fn elf_with(name: &str, data: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x3a] = 64;
        file[0x3c] = 2;
        file[0x3e] = 1;
        let data_at = file.len() as u64;
        file.extend_from_slice(data);
        let names_at = file.len() as u64;
        file.extend_from_slice(name.as_bytes());
        file.push(0);
        let names_size = name.len() as u64 + 1;
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        for (at, size) in [(data_at, data.len() as u64), (names_at, names_size)] {
            let mut header = [0; 64];
            // The table of names has the name "" (its last byte).
            let name_at = if at == data_at { 0 } else { names_size - 1 };
            header[..4].copy_from_slice(&u32::try_from(name_at).unwrap().to_le_bytes());
            header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            file.extend_from_slice(&header);
        }
        file
    }

    #[test]
    fn a_section_is_found_by_name() {
        let file = elf_with(".modinfo", b"depends=a,b\0");
        assert_eq!(section(&file, ".modinfo"), Some(&b"depends=a,b\0"[..]));
        assert_eq!(section(&file, ".text"), None);
    }

    #[test]
    fn truncated_files_have_no_sections() {
        let file = elf_with(".modinfo", b"depends=\0");
        for length in 0..file.len() - 64 {
            assert_eq!(section(&file[..length], ".modinfo"), None, "{length}");
        }
    }
}
