// SPDX-License-Identifier: GPL-2.0-only
//! Markdown tables of raw samples: every figure in a document is made here, from the samples and nothing else.

use crate::raw::Row;
use crate::stats::{percentile, summary};
use serde_json::{Map, Value};
use std::fmt::Write;

/// A number with about three significant digits, and thousands apart.
pub fn number(x: f64) -> String {
    if !x.is_finite() {
        return "–".into();
    }
    let digits = match x.abs() {
        a if a >= 100.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        _ => 3,
    };
    let s = format!("{x:.digits$}");
    let (whole, rest) = s.split_at(s.find('.').unwrap_or(s.len()));
    let (sign, whole) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut out = String::from(sign);
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out + rest
}

fn parameters(p: &Map<String, Value>) -> String {
    let show = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    p.iter().map(|(k, v)| format!("{k} {}", show(v))).collect::<Vec<_>>().join(", ")
}

fn table_of(rows: &[&Row]) -> String {
    let mut t = String::from("| what | driver | parameters | mean ± 95 % CI | CV | P50 | P95 | P99 | recall |\n");
    t.push_str("|---|---|---|--:|--:|--:|--:|--:|--:|\n");
    for r in rows {
        let p = |q| match r.latencies_us.is_empty() {
            true => "–".into(),
            false => format!("{} µs", number(percentile(&r.latencies_us, q))),
        };
        let recall = r.recall.map_or("–".into(), |x| format!("{x:.4}"));
        let _ = writeln!(
            t,
            "| {} | {} | {} | {} | {:.1} % | {} | {} | {} | {recall} |",
            r.what,
            r.driver,
            parameters(&r.params),
            rate(r),
            summary(&r.runs).cv * 100.0,
            p(50.0),
            p(95.0),
            p(99.0),
        );
    }
    t
}

/// The mean of a row with its interval and unit.
fn rate(r: &Row) -> String {
    let s = summary(&r.runs);
    let ci = if s.ci95.is_finite() { format!(" ± {}", number(s.ci95)) } else { String::new() };
    let space = if r.unit == "/s" { "" } else { " " };
    format!("{}{ci}{space}{}", number(s.mean), r.unit)
}

/// What was measured, a line each, and how fast each driver did it. Parameters that are the same for all rows of a
/// measurement stand above the table.
fn compared(rows: &[&Row]) -> String {
    let mut drivers: Vec<&str> = Vec::new();
    let mut whats: Vec<&str> = Vec::new();
    for r in rows {
        if !drivers.contains(&r.driver.as_str()) {
            drivers.push(&r.driver);
        }
        if !whats.contains(&r.what.as_str()) {
            whats.push(&r.what);
        }
    }
    let mut above: Vec<(String, Vec<&str>)> = Vec::new();
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for what in whats {
        let of: Vec<&&Row> = rows.iter().filter(|r| r.what == what).collect();
        let same = |k: &str| of.iter().all(|r| r.params.get(k) == of[0].params.get(k));
        let (shared, own): (Map<_, _>, Map<_, _>) = of[0].params.clone().into_iter().partition(|(k, _)| same(k));
        let shared = parameters(&shared);
        match above.iter_mut().find(|(s, _)| *s == shared) {
            Some((_, names)) => names.push(what),
            None => above.push((shared, vec![what])),
        }
        let optional = of.iter().flat_map(|r| r.params.keys()).filter(|k| !same(k) && !own.contains_key(*k));
        let mut keys: Vec<&String> = own.keys().chain(optional).collect();
        keys.dedup();
        for r in of {
            let mut label: Vec<String> = vec![what.into()];
            let shown: Map<String, Value> =
                keys.iter().filter_map(|k| r.params.get(*k).map(|v| ((*k).clone(), v.clone()))).collect();
            label.extend(Some(parameters(&shown)).filter(|s| !s.is_empty()));
            label.extend(r.recall.map(|x| format!("recall {x:.4}")));
            let label = label.join(", ");
            let at = drivers.iter().position(|d| *d == r.driver).unwrap_or(0);
            let line = match lines.iter().position(|(l, cells)| *l == label && cells[at].is_empty()) {
                Some(i) => &mut lines[i],
                None => {
                    lines.push((label, vec![String::new(); drivers.len()]));
                    let last = lines.len() - 1;
                    &mut lines[last]
                }
            };
            line.1[at] = rate(r);
        }
    }
    let mut t = String::new();
    for (shared, names) in above {
        let _ = writeln!(t, "- {}: {shared}", names.join("; "));
    }
    let _ = writeln!(t, "\n| | {} |\n|---|{}", drivers.join(" | "), "--:|".repeat(drivers.len()));
    for (label, cells) in lines {
        let cells: Vec<&str> = cells.iter().map(|c| if c.is_empty() { "–" } else { c }).collect();
        let _ = writeln!(t, "| {label} | {} |", cells.join(" | "));
    }
    t
}

/// Markdown of rows: a table for each machine, so that what ran in different places is never in one. `details`: a row for
/// each measurement with its percentiles; otherwise what was measured is compared, a column for each driver.
pub fn table(rows: &[Row], details: bool) -> String {
    let mut places: Vec<(&str, &str)> = rows.iter().map(|r| (r.machine.as_str(), r.cpu.as_str())).collect();
    let mut seen = Vec::new();
    places.retain(|p| {
        !seen.contains(p) && {
            seen.push(*p);
            true
        }
    });
    let mut out = String::new();
    for (machine, cpu) in places {
        let here: Vec<&Row> = rows.iter().filter(|r| r.machine == machine && r.cpu == cpu).collect();
        let runs = here.iter().map(|r| (r.warmups.len(), r.runs.len())).collect::<Vec<_>>();
        let (warm, run) = (runs.iter().map(|r| r.0).min().unwrap_or(0), runs.iter().map(|r| r.1).min().unwrap_or(0));
        let commits: std::collections::BTreeSet<&str> = here.iter().map(|r| r.commit.as_str()).collect();
        let commits = commits.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            out,
            "Measured on {machine}, {cpu}; at least {warm} warm-up and {run} measured runs, mean ± 95 % confidence interval; \
             commit {commits}.\n"
        );
        out.push_str(&if details { table_of(&here) } else { compared(&here) });
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::tests::row;

    #[test]
    fn tables_keep_machines_apart() {
        let t = table(&[row("insert", "KVM"), row("insert", "bare metal"), row("search", "KVM")], true);
        assert_eq!(t.matches("Measured on").count(), 2);
        let (kvm, bare) = t.split_at(t.find("Measured on bare metal").unwrap());
        assert!(kvm.contains("| search |") && !bare.contains("| search |"));
        assert!(
            kvm.contains("| batch 16, index hnsw | 2,000 ± 2,484/s | 50.0 % | 10.0 µs | 14.5 µs | 14.9 µs | 0.9510 |"),
            "{t}"
        );
    }

    #[test]
    fn numbers() {
        let n = [1234567.0, 999.5, 12.345, 1.2345, 0.01234, -1234.0];
        assert_eq!(n.map(number), ["1,234,567", "1,000", "12.3", "1.23", "0.012", "-1,234"]);
        assert_eq!(number(f64::INFINITY), "–");
    }

    #[test]
    fn drivers_stand_side_by_side() {
        let mut rows = vec![row("insert", "KVM"), row("insert", "KVM"), row("search", "KVM"), row("insert", "KVM")];
        rows[1].params.insert("batch".into(), 100.into());
        rows[2].recall = None;
        rows[3].driver = "ext4".into();
        rows[3].runs = vec![7.0];
        let t = table(&rows, false);
        assert!(t.contains("- insert: index hnsw\n- search: batch 16, index hnsw\n"), "{t}");
        assert!(t.contains("| | VexFS-ANNS-FUSE | ext4 |\n|---|--:|--:|\n"), "{t}");
        assert!(t.contains("| insert, batch 16, recall 0.9510 | 2,000 ± 2,484/s | 7.00/s |"), "{t}");
        assert!(t.contains("| insert, batch 100, recall 0.9510 | 2,000 ± 2,484/s | – |"), "{t}");
        assert!(t.contains("| search | 2,000 ± 2,484/s | – |"), "{t}");
    }
}
