"""Replicas that take optimizer steps of their own and exchange weights now and then: local SGD and DiLoCo."""
