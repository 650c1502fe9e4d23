"""Probes: how well do neurons predict a label, and what must that be compared with?"""
