//! The result, for people and for programs.

use serde_json::json;

use super::call::Told;

/// A table with a line for each call.
pub(super) fn text(told: &[Told]) -> String {
    let header = ["", "call", "identity the server saw", "on the wire", "verdict", ""].map(str::to_owned);
    let rows = told.iter().map(|t| {
        let mark = if t.problem.is_some() { "NOT AS TOLD" } else { "" };
        let identity = t.identity.as_deref().unwrap_or("-");
        [t.phase.as_str(), t.name, identity, t.wire.as_str(), t.verdict.as_str(), mark].map(str::to_owned)
    });
    let rows: Vec<[String; 6]> = [header].into_iter().chain(rows).collect();
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut lines = vec![String::new()];
    for (n, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        lines.push(cells.join("  ").trim_end().to_owned());
        if n == 0 {
            lines.push("-".repeat(widths.iter().sum::<usize>() + 8));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The object that scripts read.
pub(super) fn json(ok: bool, redirection: &str, told: &[Told]) -> serde_json::Value {
    let calls = told.iter().map(|t| {
        json!({
            "name": t.name,
            "phase": t.phase.as_str(),
            "identity": t.identity,
            "wire": t.wire.as_str(),
            "verdict": t.verdict.as_str(),
            "ok": t.problem.is_none(),
        })
    });
    json!({ "ok": ok, "redirection": redirection, "calls": calls.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::super::call::{Phase, Verdict, Wire};
    use super::*;

    fn told() -> Told {
        Told {
            name: "frontend -> redis",
            phase: Phase::Mesh,
            identity: Some("spiffe://cluster.local/ns/shop/sa/frontend".into()),
            wire: Wire::Tls,
            verdict: Verdict::Allowed,
            problem: None,
        }
    }

    #[test]
    fn scripts_get_the_words_of_the_interface() {
        let unknown = Told { identity: None, problem: Some("odd".into()), ..told() };
        let json = json(false, "ebpf", &[told(), unknown]);
        assert_eq!(json["calls"][0]["wire"], "tls");
        assert_eq!(json["calls"][0]["ok"], true);
        assert_eq!(json["calls"][1]["identity"], serde_json::Value::Null);
        assert_eq!(json["calls"][1]["ok"], false);
    }

    #[test]
    fn people_get_a_line_for_each_call() {
        let text = text(&[told()]);
        let lines: Vec<_> = text.trim().lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[2],
            "mesh  frontend -> redis  spiffe://cluster.local/ns/shop/sa/frontend  tls          allowed"
        );
    }
}
