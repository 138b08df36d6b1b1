// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel's modules: finding them, what they depend on, unpacking them.
//!
//! The packages ship modules without an index, which `depmod` would make at
//! installation. An image needs few, so their `.modinfo` is read instead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bzimage::filter;
use crate::elf;
use crate::error::{Context, Result, failed};
use crate::tools::{XZ, ZSTD};

const LAYER: &str = "modules";

/// The modules of one kernel, by name.
#[derive(Debug)]
pub struct Modules {
    root: PathBuf,
    by_name: BTreeMap<String, PathBuf>,
}

/// A module to put into an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// With underscores, as the kernel calls it.
    pub name: String,
    /// Relative to the kernel's directory of modules, ending in `.ko`.
    pub path: String,
    /// Unpacked.
    pub data: Vec<u8>,
    /// The names of those it needs directly.
    pub needs: Vec<String>,
}

impl Modules {
    /// Looks through `/lib/modules/RELEASE`.
    pub fn scan(root: &Path) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        let mut dirs = vec![root.join("kernel")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).context(LAYER, dir.display())? {
                let path = entry.context(LAYER, dir.display())?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if let Some(name) = name_of(&path) {
                    by_name.insert(name, path);
                }
            }
        }
        Ok(Self {
            root: root.to_path_buf(),
            by_name,
        })
    }

    /// The names of the modules in a directory, such as `drivers/hv`.
    pub fn in_directory(&self, dir: &str) -> Vec<String> {
        let dir = self.root.join("kernel").join(dir);
        let found = self
            .by_name
            .iter()
            .filter(|(_, path)| path.starts_with(&dir));
        found.map(|(name, _)| name.clone()).collect()
    }

    /// The named modules and what they need, each after what it needs. Those
    /// that this kernel doesn't have (or has built in) are left out.
    pub fn closure(&self, names: &[String]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in names {
            self.visit(name, &mut ordered, 0)?;
        }
        Ok(ordered)
    }

    fn visit(&self, name: &str, ordered: &mut Vec<Module>, depth: u32) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(path) = self.by_name.get(&name) else {
            return Ok(());
        };
        if ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        if depth > 64 {
            return Err(failed(LAYER, format!("{name} depends on itself")));
        }
        let data = unpack(path)?;
        let needs = needs(&data);
        for need in &needs {
            self.visit(need, ordered, depth + 1)?;
        }
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        let relative = relative.to_string_lossy();
        let end = relative.find(".ko").map_or(relative.len(), |at| at + 3);
        ordered.push(Module {
            name,
            path: relative.get(..end).unwrap_or_default().to_owned(),
            data,
            needs,
        });
        Ok(())
    }
}

/// `modules.dep` as `modprobe` reads it: a module, then all it needs, with the
/// module that is to be loaded last in front.
pub fn modules_dep(modules: &[Module]) -> String {
    let mut text = String::new();
    for module in modules {
        let mut all = Vec::new();
        let mut left = module.needs.clone();
        while let Some(name) = left.pop() {
            let found = modules.iter().find(|other| other.name == name);
            if let Some(found) = found.filter(|found| !all.contains(&found.path)) {
                all.push(found.path.clone());
                left.extend(found.needs.iter().cloned());
            }
        }
        // The reverse of the order of loading.
        let place = |path: &String| modules.iter().position(|other| other.path == *path);
        all.sort_by_key(|path| std::cmp::Reverse(place(path)));
        let _ = write!(text, "{}:", module.path);
        for path in all {
            text.push(' ');
            text.push_str(&path);
        }
        text.push('\n');
    }
    text
}

fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, packed) = file.split_once(".ko")?;
    matches!(packed, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let data = fs::read(path).context(LAYER, path.display())?;
    match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => filter(XZ, &["-dc"], &data),
        Some("zst") => filter(ZSTD, &["-dcq"], &data),
        Some("ko") => Ok(data),
        _ => Err(failed(
            LAYER,
            format!("{}: packed in an unknown way", path.display()),
        )),
    }
}

/// The names after `depends=` in `.modinfo`, a list of NUL-terminated strings.
fn needs(module: &[u8]) -> Vec<String> {
    let info = elf::section(module, ".modinfo").unwrap_or_default();
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|item| item.strip_prefix(b"depends="))
        .unwrap_or_default();
    let depends = String::from_utf8_lossy(depends).replace('-', "_");
    depends
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf_with;

    fn module(name: &str, needs: &[&str]) -> Module {
        Module {
            name: name.to_owned(),
            path: format!("kernel/{name}.ko"),
            data: Vec::new(),
            needs: needs.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let file = elf_with(
            ".modinfo",
            b"license=GPL\0depends=vsock,hv-vmbus\0name=hv_sock\0",
        );
        assert_eq!(needs(&file), ["vsock", "hv_vmbus"]);
        assert!(needs(&elf_with(".modinfo", b"depends=\0")).is_empty());
        assert!(needs(b"not ELF").is_empty());
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        assert_eq!(
            name_of(Path::new("/k/kvm-amd.ko.xz")).as_deref(),
            Some("kvm_amd")
        );
        assert_eq!(name_of(Path::new("/k/ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(name_of(Path::new("/k/modules.order")), None);
    }

    #[test]
    fn modules_dep_lists_all_needs_in_reverse_order_of_loading() {
        let modules = [
            module("a", &[]),
            module("b", &["a"]),
            module("c", &["a", "b"]),
        ];
        assert_eq!(
            modules_dep(&modules),
            "kernel/a.ko:\nkernel/b.ko: kernel/a.ko\nkernel/c.ko: kernel/b.ko kernel/a.ko\n"
        );
    }

    #[test]
    fn the_closure_orders_by_need_and_skips_what_is_missing() {
        let dir = std::env::temp_dir().join(format!("modules-{}", std::process::id()));
        let kernel = dir.join("kernel/drivers/x");
        fs::create_dir_all(&kernel).unwrap();
        fs::write(
            kernel.join("top.ko"),
            elf_with(".modinfo", b"depends=low,builtin\0"),
        )
        .unwrap();
        fs::write(kernel.join("low.ko"), elf_with(".modinfo", b"depends=\0")).unwrap();
        let modules = Modules::scan(&dir).unwrap();
        let closure = modules
            .closure(&["top".to_owned(), "low".to_owned()])
            .unwrap();
        let names: Vec<&str> = closure.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["low", "top"]);
        assert_eq!(modules.in_directory("drivers/x"), ["low", "top"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
