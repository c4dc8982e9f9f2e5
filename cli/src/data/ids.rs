// SPDX-License-Identifier: GPL-2.0-only
//! Files of record ids: a .npy column of integers, or a number on each line.

use super::{npy, open};
use crate::fail;
use crate::fail::{code, Done, Failure};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// All ids of the file.
pub fn read_ids(path: &Path) -> Done<Vec<u64>> {
    if path.extension().is_some_and(|e| e == "npy") {
        return npy::integers(path);
    }
    let (file, _) = open(path)?;
    let mut out = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| Failure::io(path.display(), &e))?;
        match line.trim() {
            "" => {}
            text => match text.parse() {
                Ok(id) => out.push(id),
                Err(_) => fail!(
                    code::USAGE,
                    "{}: line {}: '{text}' is no record id (an integer from 0 on)",
                    path.display(),
                    n + 1
                ),
            },
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines() {
        let p = std::env::temp_dir().join(format!("vexfs-ids-{}", std::process::id()));
        std::fs::write(&p, "3\n 18446744073709551615 \n\n0\n").unwrap();
        assert_eq!(super::read_ids(&p).unwrap(), [3, u64::MAX, 0]);
        std::fs::write(&p, "3\n-4\n").unwrap();
        assert!(super::read_ids(&p).unwrap_err().text.contains("line 2: '-4'"));
        std::fs::remove_file(&p).unwrap();
    }
}
