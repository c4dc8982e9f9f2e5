// SPDX-License-Identifier: GPL-2.0-only
//! `powercut-settle IMAGE SEED`: the power cut after the end of a daemon that was mounted with
//! `-o powercut=SEED` and killed (see `vexfs_embedded::testing`).

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(image), Some(Ok(seed))) = (args.first(), args.get(1).map(|s| s.parse())) else {
        eprintln!("usage: powercut-settle IMAGE SEED");
        return ExitCode::from(2);
    };
    match vexfs_embedded::testing::settle(image, format!("{image}.powercut"), seed) {
        Ok(s) => {
            println!("{} writes arrived, {} were torn, {} were lost", s.whole, s.torn, s.lost);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("powercut-settle: {image}: {e}");
            ExitCode::FAILURE
        }
    }
}
