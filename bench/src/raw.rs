// SPDX-License-Identifier: GPL-2.0-only
//! Raw samples on disk. A row is one measurement under one set of parameters;
//! its samples are kept whole, so that every figure in a document can be made again by `vexfs-bench table`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;
use vexfs_cli::fail;
use vexfs_cli::fail::{code, Done, Failure};

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured: `insert`, `search`, `create`, …
    pub what: String,
    /// What did it: `VexFS-ANNS-EMBEDDED`, `VexFS-ANNS-FUSE`, `VexFS-ANNS-KERNEL`, or another filesystem's name.
    pub driver: String,
    /// Where it ran: bare metal, KVM, emulated VM, user-mode Linux.
    pub machine: String,
    /// Processor and number of processors.
    pub cpu: String,
    /// Commit of the sources, if known.
    pub commit: String,
    /// The command line.
    pub command: String,
    /// Seconds since 1970.
    pub time: u64,
    /// Parameters.
    pub params: Map<String, Value>,
    /// Unit of the runs: `/s` or `MB/s`; larger is better.
    pub unit: String,
    /// Warm-up runs, not in any figure.
    pub warmups: Vec<f64>,
    /// Measured runs.
    pub runs: Vec<f64>,
    /// Microseconds of each single request of the measured runs; empty where a run is one request.
    pub latencies_us: Vec<f64>,
    /// Recall at k against exact ground truth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recall: Option<f64>,
    /// Distance evaluations of a query, on average.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evaluations: Option<f64>,
}

/// The file of a series of measurements.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Raw {
    /// Version of this form.
    pub version: u32,
    /// Measurements in the order in which they were taken.
    pub rows: Vec<Row>,
}

impl Raw {
    /// Reads a file.
    pub fn read(path: &Path) -> Done<Raw> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::io(path.display(), &e))?;
        let raw: Raw = serde_json::from_str(&text)
            .map_err(|e| Failure::new(code::USAGE, format!("{}: not a file of vexfs-bench: {e}", path.display())))?;
        if raw.version != 1 {
            fail!(code::USAGE, "{}: version {} is not known", path.display(), raw.version);
        }
        Ok(raw)
    }

    /// Adds rows to a file, which is made if it is not there.
    pub fn append(path: &Path, rows: &[Row]) -> Done {
        let mut raw = if path.exists() { Raw::read(path)? } else { Raw { version: 1, rows: Vec::new() } };
        raw.rows.extend_from_slice(rows);
        let text = serde_json::to_string(&raw).map_err(|e| Failure::new(code::FAILED, e.to_string()))?;
        // A table must not be lost to a full disk half way.
        let fresh = path.with_extension("json.new");
        let io = |e| Failure::io(path.display(), &e);
        std::fs::write(&fresh, text + "\n").map_err(io)?;
        std::fs::rename(&fresh, path).map_err(io)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row for tests.
    pub fn row(what: &str, machine: &str) -> Row {
        Row {
            what: what.into(),
            driver: "VexFS-ANNS-FUSE".into(),
            machine: machine.into(),
            cpu: "cpu".into(),
            commit: "abc".into(),
            command: String::new(),
            time: 0,
            params: serde_json::from_str(r#"{"batch":16,"index":"hnsw"}"#).unwrap(),
            unit: "/s".into(),
            warmups: vec![1.0],
            runs: vec![1000.0, 3000.0, 2000.0],
            latencies_us: vec![5.0, 15.0],
            recall: Some(0.951),
            evaluations: None,
        }
    }

    #[test]
    fn files_grow() {
        let path = std::env::temp_dir().join(format!("vexfs-bench-{}.json", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Raw::append(&path, &[row("a", "x")]).unwrap();
        Raw::append(&path, &[row("b", "x")]).unwrap();
        let raw = Raw::read(&path).unwrap();
        assert_eq!(raw.rows.iter().map(|r| r.what.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(raw.rows[0].runs, [1000.0, 3000.0, 2000.0]);
        std::fs::write(&path, "{}").unwrap();
        assert!(Raw::read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
