"""Reports: self-contained HTML pages that open anywhere and load nothing."""
