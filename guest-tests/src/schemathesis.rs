// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! schemathesis, which makes requests from an OpenAPI description and checks what is
//! answered. A pinned version from PyPI, in an environment of its own under target/.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Context, Result, output_of};
use crate::paths;
use crate::progress::step;
use crate::tools::PYTHON;

const LAYER: &str = "schemathesis";

/// Where it is installed.
fn home() -> PathBuf {
    paths::target().join("schemathesis")
}

fn ours() -> PathBuf {
    paths::workspace().join("guest-tests/api-fuzz")
}

/// The program.
pub fn program() -> PathBuf {
    home().join("bin/schemathesis")
}

/// How it is run.
pub fn config() -> PathBuf {
    ours().join("schemathesis.toml")
}

/// What it has to know of the API beyond the description.
pub fn hooks() -> PathBuf {
    ours().join("hooks.py")
}

/// What it makes requests from.
pub fn description() -> PathBuf {
    paths::workspace().join("docs/openapi.json")
}

/// Installs it, unless this version is there.
pub fn prepare() -> Result<()> {
    let wanted = ours().join("requirements.txt");
    let wished = fs::read_to_string(&wanted).context(LAYER, wanted.display())?;
    let stamp = home().join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wished) {
        return Ok(());
    }
    let python = PYTHON.require()?;
    step("installing schemathesis from PyPI", || {
        output_of(
            LAYER,
            Command::new(&python)
                .args(["-m", "venv", "--clear"])
                .arg(home()),
        )?;
        output_of(
            LAYER,
            Command::new(home().join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check"])
                .arg("--requirement")
                .arg(&wanted),
        )?;
        fs::write(&stamp, wished).context(LAYER, stamp.display())
    })
}
