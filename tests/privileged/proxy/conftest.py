"""Tests here take a whole node as a fixture."""

from services_lab import lab as lab
