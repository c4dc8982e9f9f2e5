# SPDX-License-Identifier: GPL-2.0-only
"""What bench/peers is made of: data with exact truth, engines, the worker that one engine runs in, the driver, tables."""
